//! The door: looks at the head of a call before a byte of its message is read, and tells how every call ended.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use muster_shared::grpc::STREAMED;
use muster_shared::grpc::open_inference::proto::grpc_inference_service_server::GrpcInferenceServiceServer;
use muster_shared::grpc::problem::{PROBLEM, of_status, to_status};
use muster_shared::problem::{Kind, Problem};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::Service;
use tracing::Instrument as _;

use super::calls::Calls;
use crate::account::Outcome;
use crate::keys::ApiKey;
use crate::observe::{Observed, Route};
use crate::state::{Caller, State};
use crate::{auth, limits, patience, via};

/// Whoever watches over a server has no key.
const OPEN: [&str; 2] = ["/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady"];
/// Longest message of such a call, in bytes; it has nothing to say.
const LITTLE: usize = 1024;
/// The call that runs a model once.
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// The service, for the calls of one connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct Door {
    state: State,
    calls: GrpcInferenceServiceServer<Calls>,
    open: GrpcInferenceServiceServer<Calls>,
    /// Longest message, in bytes.
    limit: usize,
    /// Where they come from.
    peer: Option<IpAddr>,
}

impl Door {
    pub(super) fn new(state: State, limit: usize) -> Self {
        let calls = GrpcInferenceServiceServer::new(Calls(state.clone()));
        let open = calls.clone().max_decoding_message_size(LITTLE.min(limit));
        Self { state, calls: calls.max_decoding_message_size(limit), open, limit, peer: None }
    }

    /// The same for a connection from there.
    pub(super) fn serving(&self, peer: Option<IpAddr>) -> Self {
        Self { peer, ..self.clone() }
    }

    /// Lets a stream in. Its messages are looked at one by one, and told of one by one.
    fn stream(&mut self, mut call: Request<Body>) -> Answered {
        let mut shown = None;
        match admit(&self.state, call.headers(), self.peer, |key| shown = Some(Arc::clone(key))) {
            Ok(key) => {
                call.extensions_mut().insert(auth::Shown(key));
                self.peer.map(|peer| call.extensions_mut().insert(auth::Peer(peer)));
                Box::pin(self.calls.call(call))
            }
            Err(problem) => {
                let status = refused(call.headers(), shown.as_ref(), problem);
                Box::pin(async { Ok(status.into_http()) })
            }
        }
    }
}

type Answered = BoxFuture<'static, Result<Response<Body>, Infallible>>;

impl Service<Request<Body>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answered;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(())) // as what is generated always is
    }

    fn call(&mut self, mut call: Request<Body>) -> Self::Future {
        let route = match call.uri().path() {
            path if OPEN.contains(&path) => return Box::pin(self.open.call(call)),
            STREAMED => return self.stream(call),
            INFER => Route::Infer,
            _ => Route::Inference,
        };
        let observed = Observed::begin(route, call.headers());
        let shown = |key: &Arc<ApiKey>| observe(&observed, key);
        let key = match admit(&self.state, call.headers(), self.peer, shown) {
            Ok(key) => key,
            Err(problem) => {
                let response = to_status(problem).into_http();
                end(&observed, response.headers());
                return Box::pin(async { Ok(response) });
            }
        };
        let caller = caller(&observed, call.headers(), key);
        call.extensions_mut().insert(caller);
        let (answer, limit) = (self.calls.call(call).instrument(observed.span.clone()), self.limit);
        Box::pin(async move {
            let mut response = answer.await?;
            explain_size(response.headers_mut(), limit);
            end(&observed, response.headers());
            Ok(response)
        })
    }
}

/// The key with which a call from an address may pass, by its head. `shown`: hears of it before the rest is looked at.
///
/// # Errors
/// Why it may not.
fn admit(
    state: &State,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
    shown: impl FnOnce(&Arc<ApiKey>),
) -> Result<Option<Arc<ApiKey>>, Problem> {
    let key = auth::key(state, headers, peer)?;
    key.as_ref().map(shown);
    limits::knock(state, key.as_deref(), peer)?;
    via::check(headers, state.upstream.via())?;
    Ok(key)
}

/// Takes note of a key with which a request came.
pub(super) fn observe(observed: &Observed, key: &Arc<ApiKey>) {
    auth::note(|| observed.span.clone(), Some(key));
    observed.account.shown(key);
}

/// Who sends a request, as far as it matters.
pub(super) fn caller(observed: &Observed, headers: &HeaderMap, key: Option<Arc<ApiKey>>) -> Caller {
    let account = observed.account.clone();
    let until = patience::of(headers, account.begun());
    Caller { id: account.id().clone(), account, key, until }
}

/// Tells of a stream, or of a message of one, that is not served; it gets that status.
pub(super) fn refused(headers: &HeaderMap, key: Option<&Arc<ApiKey>>, problem: Problem) -> Status {
    let observed = Observed::begin(Route::Infer, headers);
    key.into_iter().for_each(|key| observe(&observed, key));
    failed(&observed, problem.kind);
    to_status(problem)
}

/// A request was not answered as it should have been.
pub(super) fn failed(observed: &Observed, kind: Kind) {
    observed.account.end(Outcome::Failed(kind));
    observed.end(kind.status(), false);
}

/// Tells of a call by the head of its answer.
fn end(observed: &Observed, headers: &HeaderMap) {
    match Status::from_header_map(headers).filter(|status| status.code() != Code::Ok) {
        Some(status) => failed(observed, kind(&status)),
        None => observed.end(200, false),
    }
}

/// What went wrong. A status that is no problem of ours is tonic's own: nothing is called so, or a message is no message.
fn kind(status: &Status) -> Kind {
    let unsaid = if status.code() == Code::Unimplemented { Kind::NotFound } else { Kind::Invalid };
    of_status(status).map_or(unsaid, |problem| problem.kind)
}

/// Puts our own words on tonic's refusal of a message that is too long.
fn explain_size(headers: &mut HeaderMap, limit: usize) {
    let Some(status) = Status::from_header_map(headers) else { return };
    // One that is a problem of ours already speaks for itself, a worker's say.
    if !headers.contains_key(PROBLEM)
        && let Some(problem) = too_long(&status, limit)
    {
        // Should it not fit into headers, the refusal stays as it was.
        let _ = to_status(problem).add_header(headers);
    }
}

/// What tonic's refusal of a message that is too long means.
pub(super) fn too_long(status: &Status, limit: usize) -> Option<Problem> {
    let message = || format!("the message is longer than this gateway takes, {limit} bytes; --body-limit sets that");
    (status.code() == Code::OutOfRange).then(|| Problem::new(Kind::TooLarge, message()))
}
