//! The tour that every client takes: `../TOUR.md` says what each step does and prints.

use std::cell::Cell;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use chargeonce::{
    CaptureMode, CaptureRequest, Card, ChargeRequest, ChargeResponse, ChargeStatus, Commands, DeclineReason, Failure,
    GetChargeHistoryRequest, GetChargeRequest, GetChargeResponse, GetUserSummaryRequest, ListChargesRequest, Money,
    OperationOutcome, OperationStatus, OutcomeSource, Queries, RefundRequest, Refusal, Settings, VoidRequest,
    WatchChargeRequest, get_charge_history_request, get_charge_request, once, until_answered, until_settled,
    watch_charge_request,
};
use prost::Message;
use serde_json::{Map, Value, json};
use tonic::{Response, Status};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const SHORT: Duration = Duration::from_millis(300);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match take().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn take() -> Outcome {
    let settings = Settings::from_env();
    let tour = Tour { commands: settings.commands()?, queries: settings.queries()? };
    let first = tour.keys().await?;
    tour.deadlines().await?;
    tour.own_writes(&first).await?;
    unknown_values()?;
    let refund = tour.operations().await?;
    tour.customer().await?;
    tour.watch().await?;
    tour.pages().await?;
    tour.history().await?;
    tour.summary(refund).await
}

struct Tour {
    commands: Commands,
    queries: Queries,
}

impl Tour {
    /// What a key means. Returns the answer to the charge `tour-1`.
    async fn keys(&self) -> Outcome<ChargeResponse> {
        let metadata = [("order".into(), "1001".into())].into();
        let request = ChargeRequest { description: "one umbrella".into(), metadata, ..charge("tour-1") };
        let first = self.charge(&request).await?;
        show("charge", seen(&first));
        let again = self.charge(&request).await?;
        let same_transaction = again.transaction_id == first.transaction_id;
        show("same key", with(seen(&again), "same_transaction", json!(same_transaction)));

        let refusal = refused(self.charge(&ChargeRequest { amount: euros(1300), ..request }).await)?;
        show("another amount", with(told(&refusal), "status", json!(refusal.metadata.get("status"))));
        let invalid = ChargeRequest { user_id: String::new(), amount: euros(0), ..charge("tour-invalid") };
        let refusal = refused(self.charge(&invalid).await)?;
        let mut fields: Vec<_> = refusal.violations.iter().map(|violation| &violation.field).collect();
        fields.sort();
        show("invalid", with(told(&refusal), "violations", json!(fields)));

        let declined = self.charge(&ChargeRequest { card: card("tok_declined"), ..charge("tour-2") }).await?;
        let reason = name(declined.decline_reason, DeclineReason::as_str_name);
        show("decline", json!({"status": status(declined.status), "decline_reason": reason}));
        show("new key", told(&refused(self.charge(&charge("tour-2")).await)?));
        Ok(first)
    }

    /// A deadline that passes leaves the outcome open; the same key finds it.
    async fn deadlines(&self) -> Outcome {
        let slow = ChargeRequest { card: card("tok_slow"), ..charge("tour-3") };
        let answer = once(SHORT, &slow, async |request| self.commands.clone().charge(request).await).await;
        let decided = answer.is_ok_and(|answer| answer.status() != ChargeStatus::Pending);
        show("deadline", json!({"decided": decided}));
        let answer = self.charge(&slow).await?;
        show("after the deadline", json!({"charge_id": answer.charge_id, "status": status(answer.status)}));
        Ok(())
    }

    /// A query that is given the position of a command's answer shows what the command did.
    async fn own_writes(&self, first: &ChargeResponse) -> Outcome {
        let shown = self.get("tour-1", first).await?;
        let charge = shown.charge.unwrap_or_default();
        let amount = charge.amount.unwrap_or_default();
        let seen = json!({
            "status": status(charge.status),
            "amount": {"minor_units": amount.minor_units.to_string(), "currency_code": amount.currency_code},
            "description": charge.description,
            "metadata": charge.metadata,
            "is_shown": shown.as_of_position >= first.position,
        });
        show("own write", seen);

        let amount = Some(Money { minor_units: 999_999_999_999, currency_code: "IDR".into() });
        let large = self.charge(&ChargeRequest { amount, ..self::charge("tour-4") }).await?;
        let charge = self.get("tour-4", &large).await?.charge.unwrap_or_default();
        show("large amount", json!({"minor_units": charge.amount.unwrap_or_default().minor_units.to_string()}));
        Ok(())
    }

    /// What follows a charge. Returns the outcome of the refund.
    async fn operations(&self) -> Outcome<OperationOutcome> {
        let hold = ChargeRequest { amount: euros(5000), capture: CaptureMode::Manual.into(), ..charge("tour-5") };
        let held = self.charge(&hold).await?;
        show("hold", json!({"status": status(held.status)}));

        let charge_id = held.charge_id;
        let capture = CaptureRequest {
            idempotency_key: "tour-capture".into(),
            charge_id: charge_id.clone(),
            amount: euros(3000),
            ..CaptureRequest::default()
        };
        let captured = until_settled(&capture, async |request| self.commands.clone().capture(request).await).await?;
        show("capture", done(&captured.outcome.unwrap_or_default()));
        show("void", done(&self.void("tour-void", &charge_id).await?));

        let refund = |key: &str, minor_units, reason: &str| RefundRequest {
            idempotency_key: key.into(),
            charge_id: charge_id.clone(),
            amount: euros(minor_units),
            reason: reason.into(),
        };
        let refunded = self.refund(&refund("tour-refund", 1000, "one of three")).await?;
        show("refund", done(&refunded));
        let refusal = refused(self.refund(&refund("tour-too-much", 2001, "")).await)?;
        show("too much", with(told(&refusal), "left", json!(refusal.metadata.get("left"))));
        Ok(refunded)
    }

    /// The bank wants a step of the customer, who leaves.
    async fn customer(&self) -> Outcome {
        let answer = self.charge(&ChargeRequest { card: card("tok_3ds"), ..charge("tour-6") }).await?;
        let has_url = answer.action.is_some_and(|action| !action.url.is_empty());
        show("customer", json!({"status": status(answer.status), "has_url": has_url}));
        let outcome = self.void("tour-left", &answer.charge_id).await?;
        show("call off", json!({"status": name(outcome.status, OperationStatus::as_str_name)}));
        Ok(())
    }

    /// A watch is a call that is settled by its last message: if the stream ends before it, it is opened again.
    async fn watch(&self) -> Outcome {
        let slow = ChargeRequest { card: card("tok_slow"), ..charge("tour-7") };
        let answer = until_answered(SHORT, &slow, async |request| self.commands.clone().charge(request).await).await?;
        let request = WatchChargeRequest {
            by: Some(watch_charge_request::By::ChargeId(answer.charge_id)),
            min_position: answer.position,
            journal_id: answer.journal_id,
        };
        let first = Cell::new(None);
        let last = until_settled(&request, async |request| {
            let mut stream = self.queries.clone().watch_charge(request).await?.into_inner();
            while let Some(message) = stream.message().await? {
                let now = message.charge.as_ref().map_or(0, |charge| charge.status);
                first.set(first.get().or(Some(now)));
                if now != ChargeStatus::Pending as i32 {
                    return Ok(Response::new(message)); // the stream ends as it is dropped
                }
            }
            Err(Status::unavailable("the stream ended early"))
        })
        .await?;
        let last = last.charge.unwrap_or_default().status;
        show("watch", json!({"first": status(first.get().unwrap_or(last)), "last": status(last)}));
        Ok(())
    }

    async fn pages(&self) -> Outcome {
        let mut last = ChargeResponse::default();
        for number in 1..=5 {
            let key = format!("tour-page-{number}");
            last = self.charge(&ChargeRequest { user_id: "tour-pages".into(), ..charge(&key) }).await?;
        }
        let mut request = ListChargesRequest {
            user_id: "tour-pages".into(),
            page_size: 2,
            min_position: last.position,
            journal_id: last.journal_id,
            ..ListChargesRequest::default()
        };
        let mut pages = Vec::new();
        loop {
            let page = until_settled(&request, async |request| self.queries.clone().list_charges(request).await).await?;
            pages.push(page.charges.into_iter().map(|charge| charge.idempotency_key).collect::<Vec<_>>());
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        show("pages", json!({"pages": pages}));
        Ok(())
    }

    async fn history(&self) -> Outcome {
        let by = Some(get_charge_history_request::By::IdempotencyKey("tour-1".into()));
        let request = GetChargeHistoryRequest { by, ..GetChargeHistoryRequest::default() };
        let history = until_settled(&request, async |request| self.queries.clone().get_charge_history(request).await).await?;
        let events: Vec<_> = history.entries.into_iter().map(|entry| entry.event).collect();
        show("history", json!({"events": events}));
        Ok(())
    }

    async fn summary(&self, refund: OperationOutcome) -> Outcome {
        let request =
            GetUserSummaryRequest { user_id: "tour".into(), min_position: refund.position, journal_id: refund.journal_id };
        let summary = until_settled(&request, async |request| self.queries.clone().get_user_summary(request).await).await?;
        let currencies: Map<_, _> = summary
            .currencies
            .into_iter()
            .map(|sums| {
                let seen = json!({
                    "charged": sums.charged_minor_units.to_string(),
                    "refunded": sums.refunded_minor_units.to_string(),
                    "net": sums.net_minor_units.to_string(),
                    "held": sums.held_minor_units.to_string(),
                    "declined": sums.declined_minor_units.to_string(),
                });
                (sums.currency_code, seen)
            })
            .collect();
        show("summary", json!({"currencies": currencies}));
        Ok(())
    }

    async fn charge(&self, request: &ChargeRequest) -> Result<ChargeResponse, Failure> {
        until_settled(request, async |request| self.commands.clone().charge(request).await).await
    }

    async fn void(&self, key: &str, charge_id: &str) -> Result<OperationOutcome, Failure> {
        let request = VoidRequest { idempotency_key: key.into(), charge_id: charge_id.into(), ..VoidRequest::default() };
        let answer = until_settled(&request, async |request| self.commands.clone().void(request).await).await?;
        Ok(answer.outcome.unwrap_or_default())
    }

    async fn refund(&self, request: &RefundRequest) -> Result<OperationOutcome, Failure> {
        let answer = until_settled(request, async |request| self.commands.clone().refund(request).await).await?;
        Ok(answer.outcome.unwrap_or_default())
    }

    /// Asks for the charge of a key, and for no older state of it than the answer to the command had.
    async fn get(&self, key: &str, answer: &ChargeResponse) -> Result<GetChargeResponse, Failure> {
        let request = GetChargeRequest {
            by: Some(get_charge_request::By::IdempotencyKey(key.into())),
            min_position: answer.position,
            journal_id: answer.journal_id.clone(),
        };
        until_settled(&request, async |request| self.queries.clone().get_charge(request).await).await
    }
}

/// A status from a later contract is read as its number, and an int64 is no float.
fn unknown_values() -> Outcome {
    let bytes = b"\x10\x63\x28\x81\x80\x80\x80\x80\x80\x80\x10\xc2\x3e\x01\x78";
    let answer = ChargeResponse::decode(&bytes[..])?;
    show("unknown values", json!({"status": status(answer.status), "position": answer.position.to_string()}));
    Ok(())
}

fn charge(key: &str) -> ChargeRequest {
    ChargeRequest {
        idempotency_key: key.into(),
        user_id: "tour".into(),
        card: card("tok_visa"),
        amount: euros(1250),
        ..ChargeRequest::default()
    }
}

fn card(token: &str) -> Option<Card> {
    Some(Card { token: token.into(), brand: "visa".into(), last4: "4242".into(), ..Card::default() })
}

fn euros(minor_units: i64) -> Option<Money> {
    Some(Money { minor_units, currency_code: "EUR".into() })
}

fn refused<T>(result: Result<T, Failure>) -> Outcome<Refusal> {
    match result {
        Ok(_) => Err("what had to be refused was done".into()),
        Err(Failure::Refused(refusal)) => Ok(*refusal),
        Err(failure) => Err(failure.into()),
    }
}

/// An enum's value by its name in the contract, or by its number if this contract does not know it.
fn name<E: TryFrom<i32>>(number: i32, name: fn(&E) -> &'static str) -> Value {
    E::try_from(number).map_or_else(|_| json!(number), |known| json!(name(&known)))
}

fn status(number: i32) -> Value {
    name(number, ChargeStatus::as_str_name)
}

fn seen(answer: &ChargeResponse) -> Value {
    let source = name(answer.outcome_source, OutcomeSource::as_str_name);
    json!({"charge_id": answer.charge_id, "status": status(answer.status), "outcome_source": source})
}

fn done(outcome: &OperationOutcome) -> Value {
    let minor_units = outcome.amount.as_ref().map_or(0, |amount| amount.minor_units);
    json!({"status": name(outcome.status, OperationStatus::as_str_name), "minor_units": minor_units.to_string()})
}

fn told(refusal: &Refusal) -> Value {
    json!({"code": refusal.code as i32, "reason": refusal.reason, "advice": refusal.advice})
}

fn with(mut seen: Value, member: &str, value: Value) -> Value {
    seen[member] = value;
    seen
}

/// Prints one line of the transcript.
fn show(step: &str, seen: Value) {
    let mut line = Map::from_iter([("step".to_owned(), json!(step))]);
    line.extend(seen.as_object().cloned().unwrap_or_default());
    println!("{}", Value::Object(line));
}
