//! What a client in Rust may rely on, at real servers and a mock bank.

mod sandbox;

use std::cell::Cell;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use chargeonce::{
    Answer, Card, ChargeRequest, ChargeResponse, ChargeStatus, Commands, Failure, GetChargeRequest, Money, OperationStatus,
    OutcomeSource, RefundRequest, Refusal, Settings, get_charge_request, once, until_settled,
};
use prost::Message;
use sandbox::sandbox;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

const SHORT: Duration = Duration::from_millis(300);

fn request(key: &str) -> ChargeRequest {
    ChargeRequest {
        idempotency_key: key.into(),
        user_id: "alice".into(),
        card: Some(Card { token: "tok_visa".into(), ..Card::default() }),
        amount: Some(Money { minor_units: 1250, currency_code: "EUR".into() }),
        ..ChargeRequest::default()
    }
}

fn slow(key: &str) -> ChargeRequest {
    ChargeRequest { card: Some(Card { token: "tok_slow".into(), ..Card::default() }), ..request(key) }
}

async fn charge(commands: Commands, request: ChargeRequest) -> Result<ChargeResponse, Failure> {
    until_settled(&request, async |request| commands.clone().charge(request).await).await
}

async fn refusal(request: ChargeRequest) -> Refusal {
    match charge(sandbox().settings.commands().unwrap(), request).await {
        Err(Failure::Refused(refusal)) => *refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_key_charges_once() {
    let commands = sandbox().settings.commands().unwrap();
    let first = charge(commands.clone(), request("once")).await.unwrap();
    let again = charge(commands, request("once")).await.unwrap();
    assert_eq!(first.status(), ChargeStatus::Charged);
    assert_eq!(again.outcome_source(), OutcomeSource::Replayed);
    assert_eq!(again.transaction_id, first.transaction_id);
    assert_eq!(sandbox().movements(&first.charge_id), [1250]);
}

#[tokio::test]
async fn a_key_charges_once_for_tasks_side_by_side() {
    let commands = sandbox().settings.commands().unwrap();
    let tasks: Vec<_> = (0..5).map(|_| tokio::spawn(charge(commands.clone(), request("side-by-side")))).collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap().unwrap());
    }
    assert!(answers.iter().all(|answer| answer.transaction_id == answers[0].transaction_id));
    assert_eq!(sandbox().movements(&answers[0].charge_id), [1250]);
}

#[tokio::test]
async fn a_deadline_that_passes_leaves_the_outcome_to_the_next_call() {
    let commands = sandbox().settings.commands().unwrap();
    let call = async |request| commands.clone().charge(request).await;
    let answer = once(SHORT, &slow("deadline"), call).await;
    assert!(answer.is_ok_and(|answer| !answer.is_settled()), "the bank takes two seconds");
    let answer = charge(commands, slow("deadline")).await.unwrap();
    assert_eq!(answer.status(), ChargeStatus::Charged);
    assert_eq!(sandbox().movements(&answer.charge_id), [1250]);
}

#[tokio::test]
async fn pending_is_asked_again() {
    let commands = sandbox().settings.commands().unwrap();
    let calls = Cell::new(0);
    let call = async |mut request: Request<_>| {
        calls.set(calls.get() + 1);
        request.set_timeout(SHORT);
        commands.clone().charge(request).await
    };
    let answer = until_settled(&slow("pending"), call).await.unwrap();
    assert!(calls.get() > 1, "the bank takes two seconds");
    assert_eq!(answer.status(), ChargeStatus::Charged);
    assert_eq!(sandbox().movements(&answer.charge_id), [1250]);
}

#[tokio::test]
async fn a_pending_operation_is_asked_again() {
    let commands = sandbox().settings.commands().unwrap();
    let charge_id = charge(commands.clone(), request("given-back")).await.unwrap().charge_id;
    let refund = RefundRequest { idempotency_key: "back".into(), charge_id, ..RefundRequest::default() };
    sandbox().order(r#"{"on": "execute", "fault": "delay", "seconds": 2, "kind": "refund"}"#);
    let calls = Cell::new(0);
    let call = async |mut request: Request<_>| {
        calls.set(calls.get() + 1);
        request.set_timeout(SHORT);
        commands.clone().refund(request).await
    };
    let answer = until_settled(&refund, call).await.unwrap();
    assert!(calls.get() > 1, "the bank takes two seconds");
    assert_eq!(answer.outcome.unwrap().status(), OperationStatus::Executed);
}

#[tokio::test]
async fn the_advice_tells_what_is_repeated() {
    for (code, domain, advice, is_repeated) in [
        (Code::Unavailable, "charging.v1", "RETRY_SAME_KEY", true),
        (Code::NotFound, "charging.v1", "RETRY_SAME_KEY", false), // a query that finds nothing
        (Code::Unavailable, "charging.v1", "ASK_STATUS", true),
        (Code::ResourceExhausted, "charging.v1", "ASK_STATUS", true),
        (Code::Internal, "charging.v1", "ASK_STATUS", true),
        (Code::AlreadyExists, "charging.v1", "ASK_STATUS", false),
        (Code::AlreadyExists, "charging.v1", "USE_NEW_KEY", false),
        (Code::Unavailable, "charging.v1", "DO_NOT_RETRY", false),
        (Code::Unavailable, "charging.v1", "WAIT_FOR_THE_MOON", true), // advice of a later contract
        (Code::AlreadyExists, "charging.v1", "WAIT_FOR_THE_MOON", false),
        (Code::AlreadyExists, "charging.v1", "", false),
        (Code::PermissionDenied, "proxy.example", "DO_NOT_RETRY", true),
    ] {
        let metadata = [("advice".to_owned(), advice.to_owned())];
        let mut details = ErrorDetails::with_error_info("MOON", domain, metadata);
        details.set_retry_info(Some(Duration::from_millis(1)));
        let mut answers = [Err(Status::with_error_details(code, "a text", details)), Ok(ChargeResponse::default())].into_iter();
        let result = until_settled(&request("advised"), |_| ready(answers.next().unwrap().map(Response::new))).await;
        assert_eq!(result.is_ok(), is_repeated, "{code:?} {domain} {advice}");
    }
}

#[test]
fn a_token_is_never_sent_without_tls() {
    let settings = Settings { token_file: Some("token".into()), ..Settings::default() };
    assert!(settings.commands().is_err());
}

#[tokio::test]
async fn a_handshake_that_stalls_holds_neither_its_call_nor_the_next_connection() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls").into());
    let settings = Settings { command: silent.local_addr().unwrap().to_string(), tls, ..Settings::default() };
    let commands = settings.commands().unwrap();
    let call = async |request| commands.clone().charge(request).await;
    let request = request("silent");
    let status = once(SHORT, &request, call).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);

    let _first = silent.accept().await.unwrap();
    tokio::select! {
        second = silent.accept() => assert!(second.is_ok()),
        result = until_settled(&request, call) => panic!("no server says {result:?}"),
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_behind_the_request_charges_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let commands = commands_at(listener.local_addr().unwrap());
    tokio::spawn(relay(listener, 2));
    let long = ChargeRequest { description: "an umbrella ".repeat(100), ..slow("cut") };
    let calls = Cell::new(0);
    let call = async |request| {
        calls.set(calls.get() + 1);
        commands.clone().charge(request).await
    };
    let answer = until_settled(&long, call).await.unwrap();
    assert_eq!(calls.get(), 3);
    assert_eq!(answer.status(), ChargeStatus::Charged);
    assert_eq!(sandbox().movements(&answer.charge_id), [1250]);
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let late = tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        relay(TcpListener::bind(address).await?, 0).await
    });
    let answer = charge(commands_at(address), request("late")).await.unwrap();
    assert_eq!(answer.status(), ChargeStatus::Charged);
    late.abort();
}

#[tokio::test]
async fn a_refusal_says_what_is_wrong_and_what_to_do() {
    let invalid = refusal(ChargeRequest { user_id: String::new(), amount: None, ..request("invalid") }).await;
    assert_eq!((invalid.code, invalid.reason.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    assert_eq!(invalid.advice, "DO_NOT_RETRY");
    let mut fields: Vec<_> = invalid.violations.iter().map(|violation| violation.field.as_str()).collect();
    fields.sort();
    assert_eq!(fields, ["amount", "user_id"]);

    charge(sandbox().settings.commands().unwrap(), request("reused")).await.unwrap();
    let reused = refusal(ChargeRequest { user_id: "bob".into(), ..request("reused") }).await;
    assert_eq!((reused.code, reused.reason.as_str()), (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED"));
    assert_eq!(reused.advice, "ASK_STATUS");
    assert_eq!(reused.metadata["status"], "CHARGED");
}

#[tokio::test]
async fn the_largest_amount_survives() {
    const LARGEST: i64 = 999_999_999_999;
    let amount = Some(Money { minor_units: LARGEST, currency_code: "IDR".into() });
    let commands = sandbox().settings.commands().unwrap();
    let answer = charge(commands, ChargeRequest { amount, ..request("large") }).await.unwrap();
    let queries = sandbox().settings.queries().unwrap();
    let request = GetChargeRequest {
        by: Some(get_charge_request::By::ChargeId(answer.charge_id.clone())),
        min_position: answer.position,
        journal_id: answer.journal_id,
    };
    let shown = until_settled(&request, async |request| queries.clone().get_charge(request).await).await.unwrap();
    assert_eq!(shown.charge.unwrap().amount.unwrap().minor_units, LARGEST);
    assert_eq!(sandbox().movements(&answer.charge_id), [LARGEST]);
}

#[test]
fn an_answer_of_a_later_contract_is_read() {
    let bytes = b"\x10\x63\x28\x81\x80\x80\x80\x80\x80\x80\x10\xc2\x3e\x01\x78"; // status 99, position 2^53 + 1, field 1000
    let answer = ChargeResponse::decode(&bytes[..]).unwrap();
    assert_eq!(answer.status, 99);
    assert!(ChargeStatus::try_from(answer.status).is_err());
    assert_eq!(answer.position, 9_007_199_254_740_993);
}

#[test]
fn the_page_shows_a_test_as_it_stands() {
    assert!(include_str!("../README.md").contains(include_str!("order.rs")));
}

fn commands_at(address: SocketAddr) -> Commands {
    Settings { command: address.to_string(), ..Settings::default() }.commands().unwrap()
}

/// Passes connections on to the command server, but cuts the first ones: behind a long request, and before any answer.
async fn relay(listener: TcpListener, cuts: usize) -> io::Result<()> {
    for number in 0.. {
        let (mut client, _) = listener.accept().await?;
        let mut server = TcpStream::connect(&sandbox().settings.command).await?;
        let mut chunk = [0; 4096];
        let mut passed = 0;
        while number < cuts && passed < 1000 {
            let size = client.read(&mut chunk).await?;
            server.write_all(&chunk[..size]).await?;
            passed += size;
        }
        if number >= cuts {
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    }
    Ok(())
}
