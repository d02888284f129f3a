//! Workers that speak our own protocol over HTTP: token events as server-sent events, other answers in one piece.

use std::collections::VecDeque;

use axum::http::{HeaderValue, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream;
use http_body_util::Full;
use hyper::Request;
use muster_shared::client::ClientError;
use muster_shared::generate::{Event, GenerateRequest};
use muster_shared::problem::Problem;
use muster_shared::sse;
use muster_shared::trace::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

use super::answer::Events;
use super::broken_by;
use super::call::Call;
use super::peer::Peer;
use super::wire::{Answer, WireError};

/// Longest event a worker may send, in bytes: room for the log-probabilities of one step, many times over.
const EVENT: usize = 4 << 20;
/// Longest error body that is read, in bytes.
const PROBLEM: usize = 64 << 10;
/// Longest answer in one piece, in bytes: far more than any model gives for the longest request.
const ANSWER: usize = 256 << 20;
/// Longest answer that is read as JSON where it arrives: a larger one would hold up the other requests of its thread.
const AT_ONCE: usize = 256 << 10;

/// What a worker is shown: the fleet's token, and the span that the call is a part of.
pub(super) type Shown<'a> = (Option<&'a HeaderValue>, Option<&'a Context>);

/// Continues a prompt. Dropping the events cancels the request.
///
/// # Errors
/// See [`ClientError`].
pub(super) async fn generate(
    peer: &Arc<Peer>,
    shown: Shown<'_>,
    request: &GenerateRequest,
) -> Result<Events, ClientError> {
    let broken = |error: WireError| broken_by(&peer.address, error);
    let (head, mut answer) = peer.pool.send(post("/generate", shown, request)).await.map_err(broken)?;
    if !head.status().is_success() {
        return Err(refusal(peer, head.status().as_u16(), &mut answer).await);
    }
    let status = head.status().as_u16();
    let reader =
        Reader { peer: Arc::clone(peer), answer, status, decoder: sse::Decoder::new(EVENT), ready: VecDeque::new() };
    Ok(stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(event @ (Event::Done { .. } | Event::Failed { .. })) => {
                reader.end().await;
                Some((Ok(event), None))
            }
            Ok(event) => Some((Ok(event), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

/// Asks what is answered in one piece. Dropping the future cancels the request.
///
/// # Errors
/// See [`ClientError`].
pub(super) async fn ask<C: Call>(peer: &Arc<Peer>, shown: Shown<'_>, request: &C) -> Result<C::Answer, ClientError> {
    let broken = |error: WireError| broken_by(&peer.address, error);
    let (head, mut answer) = peer.pool.send(post(C::PATH, shown, request)).await.map_err(broken)?;
    let status = head.status().as_u16();
    if !head.status().is_success() {
        return Err(refusal(peer, status, &mut answer).await);
    }
    let unexpected = |detail: String| ClientError::Unexpected { address: peer.address.clone(), status, detail };
    let mut body = BytesMut::new();
    while let Some(data) = answer.data().await {
        let data = data.map_err(broken)?;
        if body.len() + data.len() > ANSWER {
            return Err(unexpected(format!("the answer is longer than {ANSWER} bytes")));
        }
        body.extend_from_slice(&data);
    }
    if let Some(connection) = answer.into_connection() {
        peer.pool.give_back(connection);
    }
    read(body.freeze()).await.map_err(unexpected)
}

/// Reads JSON, beside other requests where there is much of it.
async fn read<T: DeserializeOwned + Send + 'static>(body: Bytes) -> Result<T, String> {
    let read = |body: &[u8]| serde_json::from_slice(body).map_err(|error| error.to_string());
    if body.len() <= AT_ONCE {
        return read(&body);
    }
    tokio::task::spawn_blocking(move || read(&body)).await.unwrap_or_else(|panic| Err(panic.to_string()))
}

fn post(path: &'static str, (authorization, trace): Shown<'_>, body: &impl Serialize) -> Request<Full<Bytes>> {
    let body = serde_json::to_vec(body).expect("our own types are JSON");
    let mut request = Request::post(path).body(Full::new(Bytes::from(body))).expect("its path is fixed");
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(authorization) = authorization {
        headers.insert(header::AUTHORIZATION, authorization.clone());
    }
    if let Some(trace) = trace {
        trace.write(headers);
    }
    request
}

/// What a worker says in place of an answer.
async fn refusal(peer: &Peer, status: u16, answer: &mut Answer) -> ClientError {
    let mut body = Vec::new();
    while body.len() < PROBLEM
        && let Some(Ok(data)) = answer.data().await
    {
        body.extend_from_slice(&data);
    }
    let address = peer.address.clone();
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => ClientError::Refused { address, problem },
        Err(_) => {
            let detail = String::from_utf8_lossy(&body).chars().take(200).collect();
            ClientError::Unexpected { address, status, detail }
        }
    }
}

/// Reads events up to the last.
struct Reader {
    peer: Arc<Peer>,
    answer: Answer,
    status: u16,
    decoder: sse::Decoder,
    /// Events that came together with an earlier one.
    ready: VecDeque<String>,
}

impl Reader {
    async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return serde_json::from_str(&event).map_err(|error| self.unexpected(error.to_string()));
            }
            match self.answer.data().await {
                Some(Ok(data)) => {
                    let events = self.decoder.push(&data).map_err(|error| self.unexpected(error.to_string()))?;
                    self.ready.extend(events);
                }
                Some(Err(error)) => return Err(broken_by(&self.peer.address, error)),
                None => return Err(ClientError::Broken { address: self.peer.address.clone(), source: None }),
            }
        }
    }

    /// Keeps the connection, if nothing more comes over it.
    async fn end(mut self) {
        // The end of the body came with the last event, or comes right after it; a worker that says more says junk.
        if let Some(None) = futures_util::FutureExt::now_or_never(self.answer.data())
            && let Some(connection) = self.answer.into_connection()
        {
            self.peer.pool.give_back(connection);
        }
    }

    fn unexpected(&self, detail: String) -> ClientError {
        ClientError::Unexpected { address: self.peer.address.clone(), status: self.status, detail }
    }
}
