//! The protocol over HTTP, to workers: tensors as binary data.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::Request;
use muster_shared::client::ClientError;
use muster_shared::problem::{Kind, Problem};
use muster_shared::tensor::http::{Form, HEADER_LENGTH, header_length, read_response, write_request};
use muster_shared::tensor::{InferRequest, InferResponse};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::broken_by;
use super::super::native::Shown;
use super::super::peer::Peer;
use super::{About, Found, Lookup};

/// Longest answer, in bytes.
const ANSWER: usize = 256 << 20;
/// What a segment of a path holds as it is (RFC 3986, section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Runs a model. Dropping the future cancels the run.
pub(super) async fn infer(
    peer: &Peer,
    (authorization, trace): Shown<'_>,
    request: &InferRequest,
) -> Result<InferResponse, ClientError> {
    let unexpected = |problem: Problem| unexpected(peer, 200, problem.message);
    let body = write_request(request, Form::Binary).map_err(unexpected)?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(body.content_type()));
    if let Some(length) = body.header_length() {
        headers.insert(HeaderName::from_static("inference-header-content-length"), length.into());
    }
    if let Ok(name) = HeaderValue::from_str(&request.request_id) {
        headers.insert(HeaderName::from_static("x-request-id"), name);
    }
    if let Some(trace) = trace {
        trace.write(&mut headers);
    }
    let path = format!("{}/infer", model_path(&request.model, request.version.as_deref()));
    let sent = made(Method::POST, &path, headers, body.into_bytes());
    let (headers, answer) = exchange(peer, authorization, sent).await?;
    let length = headers.get(HEADER_LENGTH).map(|value| header_length(value.as_bytes())).transpose();
    read_response(answer, length.map_err(unexpected)?).map_err(unexpected)
}

/// Asks about a model, by the name under which the worker knows it.
pub(super) async fn look_up(
    peer: &Peer,
    authorization: Option<&HeaderValue>,
    model: &str,
    lookup: &Lookup,
) -> Result<Found, ClientError> {
    let path = model_path(model, lookup.version.as_deref());
    Ok(match lookup.about {
        About::Metadata => Found::Metadata(get(peer, authorization, &path).await?),
        About::Config => Found::Config(Box::new(get(peer, authorization, &format!("{path}/config")).await?)),
        About::Ready => {
            let asked = made(Method::GET, &format!("{path}/ready"), HeaderMap::new(), Bytes::new());
            exchange(peer, authorization, asked).await?;
            Found::Ready(true)
        }
    })
}

/// The path of a model.
pub(super) fn model_path(model: &str, version: Option<&str>) -> String {
    let mut path = format!("/v2/models/{}", segment(model));
    if let Some(version) = version {
        path.push_str("/versions/");
        path.extend(utf8_percent_encode(version, SEGMENT));
    }
    path
}

/// A name as a segment of a path.
pub(super) fn segment(name: &str) -> impl std::fmt::Display {
    utf8_percent_encode(name, SEGMENT)
}

/// Asks for JSON.
pub(super) async fn get<T: DeserializeOwned>(
    peer: &Peer,
    authorization: Option<&HeaderValue>,
    path: &str,
) -> Result<T, ClientError> {
    let (_, body) = exchange(peer, authorization, made(Method::GET, path, HeaderMap::new(), Bytes::new())).await?;
    read(peer, &body)
}

/// Posts an empty object; gives the answer's body.
pub(super) async fn post(peer: &Peer, authorization: Option<&HeaderValue>, path: &str) -> Result<Bytes, ClientError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let asked = made(Method::POST, path, headers, Bytes::from_static(b"{}"));
    exchange(peer, authorization, asked).await.map(|(_, body)| body)
}

/// Reads an answer's JSON.
pub(super) fn read<T: DeserializeOwned>(peer: &Peer, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| unexpected(peer, 200, error.to_string()))
}

fn made(method: Method, path: &str, headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).body(Full::new(body));
    let mut request = request.expect("a path whose segments are encoded");
    *request.headers_mut() = headers;
    request
}

/// One request and the whole of its answer.
async fn exchange(
    peer: &Peer,
    authorization: Option<&HeaderValue>,
    mut request: Request<Full<Bytes>>,
) -> Result<(HeaderMap, Bytes), ClientError> {
    if let Some(authorization) = authorization {
        request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
    }
    let broken = |error| broken_by(&peer.address, error);
    let (head, mut answer) = peer.pool.send(request).await.map_err(broken)?;
    let (head, ()) = head.into_parts();
    let status = head.status.as_u16();
    let (mut first, mut more) = (Bytes::new(), BytesMut::new());
    while let Some(data) = answer.data().await {
        let data = data.map_err(broken)?;
        if first.len() + more.len() + data.len() > ANSWER {
            return Err(unexpected(peer, status, format!("the answer is longer than {ANSWER} bytes")));
        }
        if first.is_empty() && more.is_empty() {
            first = data; // most come in one piece, and are not copied
        } else {
            more.extend_from_slice(&std::mem::take(&mut first));
            more.extend_from_slice(&data);
        }
    }
    if let Some(connection) = answer.into_connection() {
        peer.pool.give_back(connection);
    }
    let body = if more.is_empty() { first } else { more.freeze() };
    if head.status.is_success() { Ok((head.headers, body)) } else { Err(refusal(peer, status, &body)) }
}

/// What a worker says in place of an answer: our own words, or the protocol's with what ours add, else with the status.
fn refusal(peer: &Peer, status: u16, body: &[u8]) -> ClientError {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
        #[serde(default)]
        kind: Value,
        #[serde(default)]
        param: Option<String>,
        #[serde(default)]
        retry_after_ms: Option<u64>,
    }
    let own = serde_json::from_slice::<Problem>(body).ok();
    let protocols = || {
        let Refused { error: message, kind, param, retry_after_ms } = serde_json::from_slice(body).ok()?;
        let kind = Kind::deserialize(kind).ok().or_else(|| kind_of(status))?;
        Some(Problem { kind, message, param, retry_after_ms })
    };
    match own.or_else(protocols) {
        Some(problem) => ClientError::Refused { address: peer.address.clone(), problem },
        None => unexpected(peer, status, String::from_utf8_lossy(body).chars().take(200).collect()),
    }
}

fn kind_of(status: u16) -> Option<Kind> {
    Some(match status {
        400 => Kind::Invalid,
        401 | 403 => Kind::BadKey,
        404 => Kind::UnknownModel,
        413 => Kind::TooLarge,
        429 => Kind::Overloaded,
        500 => Kind::Bug,
        503 => Kind::NoWorker,
        504 => Kind::Timeout,
        _ => return None,
    })
}

fn unexpected(peer: &Peer, status: u16, detail: String) -> ClientError {
    ClientError::Unexpected { address: peer.address.clone(), status, detail }
}
