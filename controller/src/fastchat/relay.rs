//! `/worker_generate_stream`: the controller as a worker of another controller, passing frames on.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::Response;
use futures_util::stream::{self, Stream};
use muster_shared::control::Outcome;
use muster_shared::fastchat::error_code::{CONTROLLER_NO_WORKER, CONTROLLER_WORKER_TIMEOUT};
use muster_shared::problem::Problem;
use muster_shared::serve;
use serde_json::{Value, json};

use crate::desk::Patience;
use crate::http::Shared;
use crate::registry::{Asker, Holder, Note, Request};
use crate::service::{Service, TicketGuard};
use muster_shared::problem::chain;

/// Longest frame that is passed on, in bytes: a whole long answer with its log-probabilities.
const FRAME_LIMIT: usize = 16 << 20;

/// Passes a request to a worker of its model, and the worker's frames back. The status is 200 in every case but a bad
/// body; what fails is one last frame.
pub(super) async fn worker_generate_stream(
    State(service): Shared,
    serve::Body(mut params): serve::Body<Value>,
) -> Result<Response, Problem> {
    let Some(model) = params.get("model").and_then(Value::as_str) else {
        return Err(Problem::invalid("model", "the body must name a `model`"));
    };
    let request = Request::of_fastchat(model.to_owned());
    let patience = Patience::usual(service.max_wait);
    let grant = match service
        .dispatch(Asker { holder: Holder::Relay, key: None, request, note: Note::default() }, patience)
        .await
    {
        Ok(grant) => grant,
        Err(problem) => return Ok(only_frame(CONTROLLER_NO_WORKER, &problem.message)),
    };
    if let Some(model) = grant.model {
        params["model"] = Value::String(model); // the worker knows itself by no other name
    }
    let mut ticket = TicketGuard::new(Arc::clone(&service), grant.ticket);
    match open(&service, &grant.address, &params).await {
        Ok(response) => {
            let relay = Relay { response, ticket, worker: grant.address, cutter: Cutter::default(), ended: false };
            Ok(Response::new(Body::from_stream(frames(relay))))
        }
        Err((outcome, reason)) => {
            tracing::warn!(worker = %grant.worker, reason, "cannot relay a request");
            ticket.outcome = outcome;
            Ok(only_frame(CONTROLLER_WORKER_TIMEOUT, "the worker did not answer"))
        }
    }
}

async fn open(service: &Service, address: &str, params: &Value) -> Result<reqwest::Response, (Outcome, String)> {
    let sent = service.outbound.post(&format!("{address}/worker_generate_stream")).json(params).send().await;
    let response = sent.map_err(|error| {
        let outcome = if error.is_connect() { Outcome::Unreachable } else { Outcome::Failed };
        (outcome, chain(&error))
    })?;
    match response.status() {
        status if status.is_success() => Ok(response),
        status if status.is_client_error() => Err((Outcome::Done, format!("it answered {status}"))),
        status => Err((Outcome::Failed, format!("it answered {status}"))),
    }
}

/// A stream that goes through.
struct Relay {
    response: reqwest::Response,
    ticket: TicketGuard,
    worker: String,
    cutter: Cutter,
    ended: bool,
}

fn frames(relay: Relay) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold(relay, |mut relay| async move { Some((Ok(relay.next().await?), relay)) })
}

impl Relay {
    /// Whole frames as they come. A stream that breaks ends with one frame that says so.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let reason = match self.response.chunk().await {
                Ok(Some(chunk)) => match self.cutter.push(&chunk) {
                    Ok(Some(frames)) => return Some(frames),
                    Ok(None) => continue,
                    Err(TooLong) => format!("a frame exceeds {FRAME_LIMIT} bytes"),
                },
                Ok(None) if self.cutter.is_empty() => {
                    self.ended = true;
                    self.ticket.outcome = Outcome::Done;
                    return None;
                }
                Ok(None) => "it ended within a frame".to_owned(),
                Err(error) => chain(&error),
            };
            tracing::warn!(worker = %self.worker, reason, "a relayed stream broke off");
            self.ended = true;
            self.ticket.outcome = Outcome::Failed;
            return Some(error_frame(CONTROLLER_WORKER_TIMEOUT, "the worker broke off"));
        }
        None
    }
}

/// Cuts a stream of bytes at the NULs that end its frames, so that an error frame never joins half a frame.
#[derive(Debug, Default)]
struct Cutter {
    rest: Vec<u8>,
}

/// A frame exceeds the limit.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl Cutter {
    /// The whole frames that are there with `chunk`.
    fn push(&mut self, chunk: &[u8]) -> Result<Option<Bytes>, TooLong> {
        let Some(last) = chunk.iter().rposition(|&byte| byte == 0) else {
            self.rest.extend_from_slice(chunk);
            return if self.rest.len() > FRAME_LIMIT { Err(TooLong) } else { Ok(None) };
        };
        let (whole, rest) = chunk.split_at(last + 1);
        let mut frames = std::mem::replace(&mut self.rest, rest.to_vec());
        frames.extend_from_slice(whole);
        Ok(Some(frames.into()))
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

fn only_frame(code: u32, text: &str) -> Response {
    let mut response = Response::new(Body::from(error_frame(code, text)));
    // FastChat's streams have no type either.
    response.headers_mut().remove(header::CONTENT_TYPE);
    response
}

fn error_frame(code: u32, text: &str) -> Bytes {
    let mut frame = json!({ "text": text, "error_code": code }).to_string().into_bytes();
    frame.push(0);
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_leave_whole() {
        let mut cutter = Cutter::default();
        assert_eq!(cutter.push(b"{\"a\""), Ok(None));
        assert_eq!(cutter.push(b":1}\0{}\0{\"b"), Ok(Some(Bytes::from_static(b"{\"a\":1}\0{}\0"))));
        assert!(!cutter.is_empty());
        assert_eq!(cutter.push(b"\":2}\0"), Ok(Some(Bytes::from_static(b"{\"b\":2}\0"))));
        assert!(cutter.is_empty());
    }

    #[test]
    fn a_frame_without_end_is_given_up() {
        let mut cutter = Cutter::default();
        assert_eq!(cutter.push(&vec![b' '; FRAME_LIMIT + 1]), Err(TooLong));
    }
}
