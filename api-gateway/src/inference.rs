//! The Open Inference Protocol (`/v2`): models as plain graphs, for the clients of Triton and KServe.
//!
//! A run is read once, goes to a worker as every other request does, and its answer is written as the client wants it.
//! What both wires, HTTP here and gRPC in [`crate::grpc`], ask alike is in [`calls`].

pub(crate) mod calls;
mod path;

use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use bytes::Bytes;
use hyper::Response;
use muster_shared::problem::{Kind, Problem};
use muster_shared::tensor::http::{HEADER_LENGTH, header_length, read_request, write_response};
use serde::{Deserialize, Serialize};

use crate::body::beside;
use crate::observe::Route;
use crate::outgoing::{Outgoing, json};
use crate::state::{Caller, State};
use crate::upstream::tensor::{Found, Lookup};
use path::{Asked, Call};

/// Under which name a request is counted; `None` where it is not the protocol's.
pub(crate) fn route(method: &Method, path: &str) -> Option<Route> {
    let rest = path.strip_prefix("/v2").filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
    Some(if method == Method::POST && rest.ends_with("/infer") { Route::Infer } else { Route::Inference })
}

/// Whether a route is the protocol's.
pub(crate) fn is_at(route: Route) -> bool {
    matches!(route, Route::Infer | Route::Inference)
}

/// Whether a path can be asked for without a key: whoever watches over a server has none.
pub(crate) fn is_open(route: Route, path: &str) -> bool {
    is_at(route) && matches!(path, "/v2/health/live" | "/v2/health/ready")
}

/// The answer to a request that failed, in the protocol's words.
pub(crate) fn refusal(problem: &Problem) -> Response<Outgoing> {
    let status = StatusCode::from_u16(problem.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = error(status, &calls::told(problem));
    if let Some(seconds) = problem.retry_after_seconds() {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn error(status: StatusCode, text: &str) -> Response<Outgoing> {
    #[derive(Serialize)]
    struct Error<'a> {
        error: &'a str,
    }
    json(status, &Error { error: text })
}

/// Answers a request.
///
/// # Errors
/// In words for the client.
pub(crate) async fn answer(
    state: &State,
    caller: &Caller,
    head: Parts,
    body: Bytes,
) -> Result<Response<Outgoing>, Problem> {
    let Asked { call, model, version } = path::read(&head.method, head.uri.path())?;
    Ok(match call {
        Call::Server => json(StatusCode::OK, &calls::server()),
        Call::Live => nothing(),
        Call::Ready => {
            calls::ready(state)?;
            nothing()
        }
        Call::Infer => infer(state, caller, &head.headers, (model, version), body).await?,
        Call::Model(about) => {
            let lookup = Lookup { model, version, about };
            found(state.upstream.look_up(lookup, caller).await?)?
        }
        Call::Statistics => {
            let model = (!model.is_empty()).then_some(model.as_str());
            let statistics = calls::statistics(state, caller, model, version.as_deref()).await?;
            json(StatusCode::OK, &serde_json::json!({ "model_stats": statistics }))
        }
        Call::Index => json(StatusCode::OK, &calls::index(state, caller, ready_only(&body)?).await?),
        Call::Change(change) => {
            calls::change(state, caller, &model, change, parameters(&body)?.iter().map(String::as_str)).await?;
            nothing()
        }
        Call::Absent(what) => error(StatusCode::NOT_IMPLEMENTED, &calls::absent(what)),
    })
}

async fn infer(
    state: &State,
    caller: &Caller,
    headers: &HeaderMap,
    (model, version): (String, Option<String>),
    body: Bytes,
) -> Result<Response<Outgoing>, Problem> {
    let length = headers.get(HEADER_LENGTH).map(|value| header_length(value.as_bytes())).transpose()?;
    let read = move || read_request(&model, version.as_deref(), body, length);
    let size = length.unwrap_or(usize::MAX);
    let (mut request, wanted) = beside(size, read).await?;
    request.request_id = caller.id.to_string();
    let response = state.upstream.infer(request, caller).await?;
    let size = response.outputs.iter().map(|output| output.data.len()).sum();
    let body = beside(size, move || {
        let body = write_response(&response, &wanted)?;
        Ok((body.content_type(), body.header_length(), body.into_bytes()))
    });
    let (content_type, length, body) = body.await?;
    let mut response = Response::new(Outgoing::Whole(Some(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(length) = length {
        response.headers_mut().insert(HeaderName::from_static("inference-header-content-length"), length.into());
    }
    Ok(response)
}

fn found(found: Found) -> Result<Response<Outgoing>, Problem> {
    match found {
        Found::Metadata(metadata) => Ok(json(StatusCode::OK, &metadata)),
        Found::Config(config) => Ok(json(StatusCode::OK, &config)),
        Found::Ready(true) => Ok(nothing()),
        Found::Ready(false) => Err(Problem::new(Kind::NoWorker, "the model is not ready to be run")),
    }
}

fn nothing() -> Response<Outgoing> {
    Response::new(Outgoing::Whole(None))
}

/// Whether only models are wanted that can be asked: the index's body, which may be absent.
fn ready_only(body: &[u8]) -> Result<bool, Problem> {
    #[derive(Deserialize, Default)]
    struct Wanted {
        #[serde(default)]
        ready: bool,
    }
    read(body).map(|wanted: Wanted| wanted.ready)
}

/// Names of parameters for loading or unloading.
fn parameters(body: &[u8]) -> Result<Vec<String>, Problem> {
    #[derive(Deserialize, Default)]
    struct Given {
        #[serde(default)]
        parameters: serde_json::Map<String, serde_json::Value>,
    }
    read(body).map(|given: Given| given.parameters.into_iter().map(|(name, _)| name).collect())
}

fn read<T: Default + for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Problem> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        Problem::invalid("body", format!("the body cannot be read: {error}; leave it out, or send {{}}"))
    })
}
