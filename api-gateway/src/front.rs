//! The way of the requests that come by the thousand: no layer stands between them and their handler.
//!
//! Everything else, and these too where browsers must be told who may ask, goes through [`crate::routes`].

use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};

use axum::http::{Method, Uri};
use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::{Request, Response};
use muster_shared::problem::{BoxError, Kind, Problem};
use tower::Service;
use tracing::{Instrument as _, Span};

use crate::account::{Account, Outcome};
use crate::keys::check_model;
use crate::observe::{Observed, Route};
use crate::openai::embedding::EmbeddingBody;
use crate::openai::rerank::RerankBody;
use crate::openai::tokenize::{DetokenizeBody, TokenizeBody};
use crate::openai::{error, peek};
use crate::outgoing::{self, Outgoing};
use crate::state::{Caller, State};
use crate::{auth, body, chat, classify, completion, encoding, inference, limits, moderation, once, patience, via};

/// The gateway as a service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Front {
    state: State,
    router: Router,
    /// Whether the router's layers have nothing to add to an answer.
    direct: bool,
    /// Where the requests of its connection come from.
    peer: Option<IpAddr>,
}

impl Front {
    /// In front of the router. `direct`: the requests that come by the thousand need not go through it.
    pub(crate) fn new(state: State, router: Router, direct: bool) -> Self {
        Self { state, router, direct, peer: None }
    }

    /// The same for a connection from there.
    pub(crate) fn serving(&self, peer: Option<IpAddr>) -> Self {
        Self { peer, ..self.clone() }
    }
}

impl Service<Request<Incoming>> for Front {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Outgoing>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let (method, uri) = (request.method(), request.uri());
        // Not all that is below /v2 is the inference protocol's: Cohere reranks there.
        let route = busy_route(method, uri).or_else(|| inference::route(method, uri.path()));
        match route.filter(|_| self.direct) {
            Some(route) => {
                let (state, peer) = (self.state.clone(), self.peer);
                Box::pin(async move { Ok(answer(state, route, request, peer).await) })
            }
            None => {
                let mut request = request.map(Body::new);
                if let Some(peer) = self.peer {
                    request.extensions_mut().insert(auth::Peer(peer));
                }
                let answer = self.router.call(request);
                Box::pin(async move { Ok(outgoing::from_axum(answer.await)) })
            }
        }
    }
}

fn busy_route(method: &Method, uri: &Uri) -> Option<Route> {
    if method == Method::POST { Route::at(uri.path()) } else { None }
}

/// Answers a request whose answer is a model's.
pub(crate) async fn answer<B>(
    state: State,
    route: Route,
    request: Request<B>,
    peer: Option<IpAddr>,
) -> Response<Outgoing>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let observed = Observed::begin(route, request.headers());
    observed.account.came_from(peer);
    let (account, span) = (observed.account.clone(), observed.span.clone());
    let coding = encoding::negotiate(request.headers());
    let handled =
        AssertUnwindSafe(handle(state, route, request, (account, peer)).instrument(span)).catch_unwind().await;
    let handled = handled.unwrap_or_else(|panic| Err(panicked(&*panic)));
    let refused = if inference::is_at(route) { inference::refusal } else { error::response };
    let mut response = handled.unwrap_or_else(|problem| {
        observed.account.end(Outcome::Failed(problem.kind));
        refused(&problem)
    });
    let streamed = response.body().is_streamed();
    if let Some(coding) = coding {
        response = encoding::compressed(coding, response).await;
    }
    observed.account.key().iter().for_each(|key| limits::headers::write(key, response.headers_mut()));
    observed.finish(&mut response, streamed);
    response
}

async fn handle<B>(
    state: State,
    route: Route,
    request: Request<B>,
    (account, peer): (Account, Option<IpAddr>),
) -> Result<Response<Outgoing>, Problem>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let until = patience::of(request.headers(), account.begun());
    let mut caller = Caller { id: account.id().clone(), account, key: None, until };
    if !inference::is_open(route, request.uri().path()) {
        caller.key = auth::key(&state, request.headers(), peer)?;
        auth::note(Span::current, caller.key.as_deref());
        caller.key.iter().for_each(|key| caller.account.shown(key));
        limits::knock(&state, caller.key.as_deref(), peer)?;
    }
    via::check(request.headers(), state.upstream.via())?;
    let (head, incoming) = request.into_parts();
    let body = body::read(&state, incoming).await?;
    let body = body::decoded(&head.headers, body, state.body_limit).await?;
    caller.account.came(&body);
    check_named(&caller, route, &body)?;
    limits::admit_body(&caller, route, &body).await?;
    if inference::is_at(route) {
        return inference::answer(&state, &caller, head, body).await;
    }
    match route {
        Route::Completions => completion::create(&state, &caller, head.headers, body).await,
        Route::Embeddings => once::answer::<EmbeddingBody>(&state, &caller, head.headers, body).await,
        Route::Rerank => once::answer::<RerankBody>(&state, &caller, head.headers, body).await,
        Route::Classify => classify::create(&state, &caller, head.headers, body).await,
        Route::Moderations => moderation::create(&state, &caller, head.headers, body).await,
        Route::Tokenize => once::answer::<TokenizeBody>(&state, &caller, head.headers, body).await,
        Route::Detokenize => once::answer::<DetokenizeBody>(&state, &caller, head.headers, body).await,
        _ => chat::create(&state, &caller, head.headers, body).await,
    }
}

/// Refuses a model that the key may not use before anything is said of it. The name that is asked for in the end is looked
/// at again in [`crate::upstream::Upstream::job`].
fn check_named(caller: &Caller, route: Route, body: &[u8]) -> Result<(), Problem> {
    let Some(key) = caller.key.as_deref().filter(|key| key.models.is_some() && !inference::is_at(route)) else {
        return Ok(());
    };
    peek::model(body).map_or(Ok(()), |model| check_model(Some(key), &model))
}

/// The problem that a panic is.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Problem {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
    tracing::error!(panic = words, "a handler panicked");
    Problem::new(Kind::Bug, words)
}
