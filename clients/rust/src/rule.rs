//! The rule for calls: when in doubt, the same request again with the same key.
//!
//! tonic knows no service config, so this loop is the whole policy: it waits for servers that are not there, and repeats what
//! leaves the outcome open. What the service says in the details decides, not the code: tonic reports a cut connection as UNKNOWN,
//! a refused one as UNAVAILABLE, and a passed deadline as CANCELLED.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Response, Status};
use tonic_types::{FieldViolation, StatusExt};

use crate::{
    CaptureResponse, ChargeResponse, ChargeStatus, GetChargeHistoryResponse, GetChargeResponse, GetUserSummaryResponse,
    GetViewStatusResponse, ListChargesResponse, OperationOutcome, OperationStatus, RefundResponse, VoidResponse,
    WatchChargeResponse,
};

/// The deadline of a call where nothing else is said.
pub const DEADLINE: Duration = Duration::from_secs(15);
/// The pause before a repeat, unless the service says when.
pub const PAUSE: Duration = Duration::from_millis(500);
/// The time after which no further repeat is begun.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Sends a request, and the same again until its outcome is known. A decline is an outcome, not an error.
///
/// ```ignore
/// let answer = until_settled(&request, async |request| commands.clone().charge(request).await).await?;
/// ```
///
/// The clone shares the connection. A closure that borrowed the client mutably would make a future that cannot be spawned.
///
/// # Errors
/// [`Failure::Refused`]: a repeat is useless. [`Failure::Unsettled`]: the outcome is still open after
/// [`PATIENCE`]; what was begun goes on, and the same request is safe at any later time.
pub async fn until_settled<Q: Clone, A: Answer, F>(message: &Q, call: impl FnMut(Request<Q>) -> F) -> Result<A, Failure>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    repeat(DEADLINE, message, call, A::is_settled).await
}

/// As [`until_settled`], but PENDING is an answer: for those who watch the charge from then on.
///
/// # Errors
/// As [`until_settled`].
pub async fn until_answered<Q: Clone, A, F>(
    deadline: Duration,
    message: &Q,
    call: impl FnMut(Request<Q>) -> F,
) -> Result<A, Failure>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    repeat(deadline, message, call, |_| true).await
}

/// Sends a request once. The server is told the deadline, and answers PENDING shortly before it.
///
/// tonic sends the deadline of a request and counts it only while it waits for the first headers of the answer: not while it
/// connects, and not while it reads. Here it holds for all of it.
///
/// # Errors
/// Whatever ended the call. Without details of the service, in [`Refusal::of`], it leaves open what was done.
pub async fn once<Q: Clone, A, F>(deadline: Duration, message: &Q, mut call: impl FnMut(Request<Q>) -> F) -> Result<A, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let mut request = Request::new(message.clone());
    request.set_timeout(deadline);
    match timeout(deadline, call(request)).await {
        Ok(result) => result.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the deadline passed without an answer")),
    }
}

async fn repeat<Q: Clone, A, F>(
    deadline: Duration,
    message: &Q,
    mut call: impl FnMut(Request<Q>) -> F,
    is_enough: impl Fn(&A) -> bool,
) -> Result<A, Failure>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        let (open, pause) = match once(deadline, message, &mut call).await {
            Ok(answer) if is_enough(&answer) => return Ok(answer),
            Ok(_) => ("the outcome is still PENDING".to_owned(), PAUSE),
            Err(status) => match Refusal::of(&status) {
                Some(refusal) if !refusal.passes() => return Err(Failure::Refused(Box::new(refusal))),
                refusal => (status.to_string(), refusal.and_then(|each| each.retry_after).unwrap_or(PAUSE)),
            },
        };
        if Instant::now() + pause > end {
            return Err(Failure::Unsettled(open));
        }
        sleep(pause).await;
    }
}

/// An answer of the service. Those to commands may come before the outcome.
pub trait Answer {
    /// Whether a repeat would tell no more: false for PENDING alone. A status of a later contract is for the caller to judge.
    fn is_settled(&self) -> bool {
        true
    }
}

impl Answer for ChargeResponse {
    fn is_settled(&self) -> bool {
        self.status != ChargeStatus::Pending as i32
    }
}

impl Answer for CaptureResponse {
    fn is_settled(&self) -> bool {
        is_decided(self.outcome.as_ref())
    }
}

impl Answer for VoidResponse {
    fn is_settled(&self) -> bool {
        is_decided(self.outcome.as_ref())
    }
}

impl Answer for RefundResponse {
    fn is_settled(&self) -> bool {
        is_decided(self.outcome.as_ref())
    }
}

impl Answer for GetChargeResponse {}
impl Answer for ListChargesResponse {}
impl Answer for WatchChargeResponse {}
impl Answer for GetChargeHistoryResponse {}
impl Answer for GetUserSummaryResponse {}
impl Answer for GetViewStatusResponse {}

fn is_decided(outcome: Option<&OperationOutcome>) -> bool {
    outcome.is_none_or(|outcome| outcome.status != OperationStatus::Pending as i32)
}

/// An error of the service's own: what was wrong, and what to do next.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The code of the call's status.
    pub code: Code,
    /// A fixed text for people.
    pub message: String,
    /// The reason, such as `IDEMPOTENCY_KEY_REUSED`.
    pub reason: String,
    /// The name of an [`Advice`](crate::Advice) without its prefix, such as `RETRY_SAME_KEY`; a later server may have others.
    pub advice: String,
    /// What else the service tells, by the names that the contract gives at the reason.
    pub metadata: HashMap<String, String>,
    /// The fields at fault.
    pub violations: Vec<FieldViolation>,
    /// The time of a useful repeat, from now on.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// Reads the details of an error. None: the error is gRPC's or the network's own, and leaves open what was done.
    pub fn of(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == "charging.v1")?;
        Some(Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: info.reason.clone(),
            advice: info.metadata.get("advice").cloned().unwrap_or_default(),
            metadata: info.metadata.clone(),
            violations: details.bad_request().map(|each| each.field_violations.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|each| each.retry_delay),
        })
    }

    /// Whether a repeat of the same request may fare better.
    fn passes(&self) -> bool {
        match self.advice.as_str() {
            // A query's NOT_FOUND has this advice too: it means the charge, not the query.
            "RETRY_SAME_KEY" => self.code != Code::NotFound,
            "USE_NEW_KEY" | "DO_NOT_RETRY" => false,
            // ASK_STATUS, and advice of a later contract counts as that. Only queries give it with these codes.
            _ => matches!(self.code, Code::Unavailable | Code::ResourceExhausted | Code::Internal),
        }
    }
}

/// The end of a call that has no answer.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The service refuses the request as it is, and a repeat is useless. That is said of the last try: unless the advice is
    /// USE_NEW_KEY, an earlier one with the key may have moved money.
    Refused(Box<Refusal>),
    /// The outcome is open, and our patience at its end: what was met last.
    Unsettled(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "{}: {} ({})", refusal.reason, refusal.message, refusal.advice),
            Self::Unsettled(open) => write!(f, "unsettled, so ask again later with the same key: {open}"),
        }
    }
}

impl std::error::Error for Failure {}
