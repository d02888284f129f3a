//! Workers that speak OpenAI's API: a client's request goes to them as it is, and their answer comes back as it is.
//!
//! All that is ever changed in a request's body is the model's name, where the client named an alias of the worker's model,
//! or one that it stands in for.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::{Request, Response};
use muster_shared::client::ClientError;
use muster_shared::generate::Usage;
use muster_shared::problem::{Kind, Problem};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::job::{self, Job};
use super::relay::Relay;
use super::relay::check::Check;
use super::ticket::Ticket;
use super::watch::Lapse;
use super::wire::{Answer, WireError};
use super::{Upstream, broken_by};
use crate::body::beside;
use crate::openai::peek;
use crate::outgoing::Outgoing;
use crate::via::VIA;

/// Longest whole answer, in bytes: room for thousands of embeddings.
const WHOLE: usize = 64 << 20;
/// Longest body of an error that is passed on or told in the log, in bytes.
const ERROR: usize = 256 << 10;
/// Longest whole answer that is looked over for an error in place of an answer.
const SUSPICIOUS: usize = 16 << 10;

/// Headers that mean the connection they came over, or are ours to set.
const NOT_PASSED: [HeaderName; 13] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::HOST,
    header::EXPECT,
    header::DATE,
    header::SERVER,
    HeaderName::from_static("keep-alive"),
];
/// Those of a client that are for this gateway alone: its key, and codings of bodies that end here.
const OURS: [HeaderName; 5] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    header::COOKIE,
    header::ACCEPT_ENCODING,
    header::CONTENT_ENCODING,
];

/// A client's request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    /// Where it was sent.
    pub(crate) path: &'static str,
    /// Its headers, less those that end here.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether it wants a stream.
    pub(crate) stream: bool,
}

impl Raw {
    /// Takes a request as it came.
    pub(crate) fn new(path: &'static str, mut headers: HeaderMap, body: Bytes, stream: bool) -> Self {
        drop_hop_by_hop(&mut headers);
        remove(&mut headers, |name| OURS.contains(name));
        Self { path, headers, body, stream }
    }

    fn request(&self, body: Bytes, authorization: Option<&HeaderValue>, via: &HeaderValue) -> Request<Full<Bytes>> {
        let mut request = Request::post(self.path).body(Full::new(body)).expect("its path is fixed");
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().append(VIA, via.clone());
        if let Some(authorization) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        request
    }
}

/// Removes what is for one connection: what is known to be, and what it says of itself (RFC 9110, section 7.6.1).
fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let said = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = said.flat_map(|value| value.split(',')).filter_map(|name| HeaderName::try_from(name.trim()).ok());
    let named: Vec<HeaderName> = named.collect();
    remove(headers, |name| NOT_PASSED.contains(name) || named.contains(name));
}

/// Removes some of the headers that are there: looking for each that might be costs more.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let found: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    found.iter().for_each(|name| drop(headers.remove(name)));
}

/// A worker's answer, as far as it must be here before it is known to be one.
pub(super) enum Passed {
    /// All of it, and whether it tells what it has cost.
    Whole(Response<Outgoing>, Cost),
    /// Its head and its first events; the rest comes.
    Begun(hyper::http::response::Parts, Answer, Check, Bytes),
}

impl Passed {
    /// Whether it says that the request is wrong.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Whole(response, _) if response.status() == StatusCode::BAD_REQUEST)
    }
}

/// Sends a request to the worker of a ticket.
///
/// # Errors
/// The outer one when the request is over, the inner one when the worker has failed it.
pub(super) async fn pass(
    upstream: &Upstream,
    raw: &Raw,
    job: &mut Job,
    ticket: &Ticket,
) -> Result<Result<Passed, ClientError>, Problem> {
    // The first byte of a whole answer comes with its last token.
    let timeout = if raw.stream { upstream.config().first_token_timeout } else { upstream.config().request_timeout };
    job.watch.set(job.first_token_until(timeout));
    let body = match ticket.model() {
        model if *model == job.model => raw.body.clone(),
        model => {
            peek::with_model(&raw.body, model).ok_or_else(|| Problem::new(Kind::Bug, "a request lost its model"))?
        }
    };
    let reads_usage = job.account.meter().reads_usage();
    let longest = job.account.meter().unsaid();
    // Boxed, as it is large, and moved with all that holds it.
    let asked = Box::pin(async {
        let Some(longest) = longest else { return Ok(exchange(upstream, raw, (body, reads_usage), ticket).await) };
        let bounded = bounded(body.clone(), longest).await?;
        let answered = exchange(upstream, raw, (bounded, reads_usage), ticket).await;
        if !answered.as_ref().is_ok_and(Passed::is_refusal) {
            return Ok(answered);
        }
        // Perhaps it has less room than that, which is end enough; else it says what is wrong once more.
        Ok(exchange(upstream, raw, (body, reads_usage), ticket).await)
    });
    match job.watch.run(asked).await {
        Ok(answered) => answered,
        Err(Lapse::Stopping) => Err(job::stopping()),
        Err(Lapse::Late) if job.is_late() => Err(job::late()),
        Err(Lapse::Late) => Ok(Err(job::silent(ticket.peer().address.clone()))),
    }
}

/// A request's body whose answers end after so many tokens.
async fn bounded(body: Bytes, longest: u32) -> Result<Bytes, Problem> {
    let length = body.len();
    beside(length, move || Ok(peek::with_max_tokens(&body, longest)))
        .await?
        .ok_or_else(|| Problem::invalid("max_tokens", "'max_tokens' must be given once, or be left out"))
}

/// The body of an answer that goes on as it comes.
pub(super) fn relay(
    upstream: &Upstream,
    (head, answer, check, first): (hyper::http::response::Parts, Answer, Check, Bytes),
    job: Job,
    ticket: Ticket,
) -> Response<Outgoing> {
    let silence: Duration = upstream.config().inter_token_timeout;
    let relay = Relay::new(answer, (check, first), ticket, job, upstream.shared_view(), silence);
    Response::from_parts(head, Outgoing::Relay(Box::new(relay)))
}

async fn exchange(
    upstream: &Upstream,
    raw: &Raw,
    (body, reads_usage): (Bytes, bool),
    ticket: &Ticket,
) -> Result<Passed, ClientError> {
    let peer = ticket.peer();
    let broken = |error: WireError| broken_by(&peer.address, error);
    let mut request = raw.request(body, upstream.openai_authorization(), upstream.via());
    if let Some(trace) = ticket.context() {
        trace.write(request.headers_mut());
    }
    let (response, mut answer) = peer.pool.send(request).await.map_err(broken)?;
    let (mut head, ()) = response.into_parts();
    drop_hop_by_hop(&mut head.headers);
    let unexpected = |status: StatusCode, detail: String| ClientError::Unexpected {
        address: peer.address.clone(),
        status: status.as_u16(),
        detail,
    };
    if head.status == StatusCode::OK && raw.stream && is(&head.headers, "text/event-stream") {
        let mut check = if reads_usage { Check::reading_usage() } else { Check::new() };
        let first = first_events(&mut answer, &mut check).await.map_err(|error| match error {
            Begin::Wire(error) => broken(error),
            Begin::Garbage(detail) => unexpected(head.status, detail),
        })?;
        return Ok(Passed::Begun(head, answer, check, first));
    }
    let limit = if head.status.is_success() { WHOLE } else { ERROR };
    let body = match whole(&mut answer, limit).await {
        Ok(Some(body)) => body,
        Ok(None) => return Err(unexpected(head.status, format!("the body is longer than {limit} bytes"))),
        Err(error) => return Err(broken(error)),
    };
    if let Some(connection) = answer.into_connection() {
        peer.pool.give_back(connection);
    }
    judge(&head, &body, raw.stream).map_err(|judgement| match judgement {
        Judgement::Refused(problem) => ClientError::Refused { address: peer.address.clone(), problem },
        Judgement::Unexpected(detail) => unexpected(head.status, detail),
    })?;
    let cost = match head.status.is_success() {
        true if reads_usage => beside(body.len(), {
            let body = body.clone();
            move || Ok(usage_of(&body).map_or(Cost::Untold, Cost::Told))
        })
        .await
        .unwrap_or(Cost::Untold),
        true => Cost::Untold,
        false => Cost::Nothing,
    };
    Ok(Passed::Whole(Response::from_parts(head, Outgoing::Whole(Some(body))), cost))
}

/// What an answer that is passed on has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// It is none.
    Nothing,
    /// It does not say, or nobody wants to know.
    Untold,
    /// So much.
    Told(Usage),
}

/// What an answer, or an event of one, says that it has cost.
pub(super) fn usage_of(object: &[u8]) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Body {
        usage: Option<Told>,
    }
    #[derive(Deserialize)]
    struct Told {
        #[serde(default)]
        prompt_tokens: u32,
        completion_tokens: Option<u32>,
        total_tokens: Option<u32>,
    }
    let Told { prompt_tokens, completion_tokens, total_tokens } = serde_json::from_slice::<Body>(object).ok()?.usage?;
    let rest = total_tokens.map(|total| total.saturating_sub(prompt_tokens));
    Some(Usage { prompt_tokens, completion_tokens: completion_tokens.or(rest)?, cached_tokens: 0 })
}

/// Why a stream has not begun.
enum Begin {
    Wire(WireError),
    Garbage(String),
}

/// The first events: until they are here, another worker may do better.
async fn first_events(answer: &mut Answer, check: &mut Check) -> Result<Bytes, Begin> {
    let mut begun = BytesMut::new();
    loop {
        match answer.data().await {
            Some(Ok(data)) => match check.push(data) {
                Ok(passed) if begun.is_empty() && check.events > 0 => return Ok(passed),
                Ok(passed) => begun.extend_from_slice(&passed),
                Err(garbage) => return Err(Begin::Garbage(garbage.to_string())),
            },
            Some(Err(error)) => return Err(Begin::Wire(error)),
            None => return Err(Begin::Garbage("the stream ended before its first event".to_owned())),
        }
        if check.events > 0 {
            return Ok(begun.freeze());
        }
    }
}

/// A body to its end; `None` when it is longer than `limit` bytes.
async fn whole(answer: &mut Answer, limit: usize) -> Result<Option<Bytes>, WireError> {
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(data) = answer.data().await {
        let data = data?;
        if first.len() + more.len() + data.len() > limit {
            return Ok(None);
        }
        match (first.is_empty(), more.is_empty()) {
            (true, true) => first = data,
            (false, _) => {
                more.reserve(first.len() + data.len());
                more.extend_from_slice(&std::mem::take(&mut first));
                more.extend_from_slice(&data);
            }
            (true, false) => more.extend_from_slice(&data),
        }
    }
    Ok(Some(if more.is_empty() { first } else { more.freeze() }))
}

/// Why an answer is not passed on.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// The worker cannot, and says so in words that we know.
    Refused(Problem),
    /// It is broken, or something else than we think.
    Unexpected(String),
}

/// Whether an answer is the client's to read: a result, or what is wrong with its request.
fn judge(head: &hyper::http::response::Parts, body: &[u8], stream: bool) -> Result<(), Judgement> {
    let text = || String::from_utf8_lossy(body).chars().take(200).collect::<String>();
    match head.status {
        StatusCode::OK if stream => Err(Judgement::Unexpected("a stream was asked for, and none came".to_owned())),
        StatusCode::OK => judge_result(head, body),
        StatusCode::NOT_FOUND if is(&head.headers, "application/json") => {
            Err(Judgement::Refused(Problem::new(Kind::UnknownModel, said(body)).with_param("model")))
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Err(Judgement::Refused(
            Problem::new(Kind::Overloaded, said(body)).with_retry_after_ms(retry_after_ms(head)),
        )),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::REQUEST_TIMEOUT | StatusCode::NOT_FOUND => {
            Err(Judgement::Unexpected(text()))
        }
        status if status.is_client_error() => Ok(()),
        _ => Err(Judgement::Unexpected(text())),
    }
}

fn judge_result(head: &hyper::http::response::Parts, body: &[u8]) -> Result<(), Judgement> {
    let trimmed = body.trim_ascii();
    if !is(&head.headers, "application/json") || !trimmed.starts_with(b"{") || !trimmed.ends_with(b"}") {
        return Err(Judgement::Unexpected("200 with a body that is not a JSON object".to_owned()));
    }
    if std::str::from_utf8(body).is_err() {
        return Err(Judgement::Unexpected("200 with a body that is not UTF-8".to_owned()));
    }
    if body.len() > SUSPICIOUS {
        return Ok(());
    }
    match serde_json::from_slice::<Suspect<'_>>(body) {
        Ok(suspect) if suspect.error.is_some() || suspect.object.as_deref() == Some("error") => {
            Err(Judgement::Unexpected(format!("200 with an error in it: {}", said(body))))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(Judgement::Unexpected(format!("200 with a body that is not JSON: {error}"))),
    }
}

/// The part of an answer that tells an error.
#[derive(Deserialize)]
struct Suspect<'a> {
    error: Option<IgnoredAny>,
    #[serde(borrow)]
    object: Option<Cow<'a, str>>,
}

/// What an error body says, for the client or the log.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: Option<serde_json::Value>,
        message: Option<String>,
    }
    let body: Option<Body> = serde_json::from_slice(body).ok();
    let message = body.and_then(|body| match body.error {
        Some(serde_json::Value::String(text)) => Some(text),
        Some(error) => error["message"].as_str().map(str::to_owned),
        None => body.message,
    });
    message.map_or_else(|| "the worker does not say why".to_owned(), |text| text.chars().take(500).collect())
}

fn retry_after_ms(head: &hyper::http::response::Parts) -> u64 {
    let seconds = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    seconds.unwrap_or(1).clamp(1, 60) * 1000
}

fn is(headers: &HeaderMap, kind: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let value = value.split(';').next().unwrap_or_default().trim();
    value.eq_ignore_ascii_case(kind)
}
