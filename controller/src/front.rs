//! The way of the calls that come by the thousand: no layer stands between them and their handler.
//!
//! The handlers are the router's, and so are the answers. Everything else goes through [`crate::http::router`].

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest as _, State};
use axum::http::{Method, Request};
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use muster_shared::problem::Problem;
use muster_shared::serve::{self, Patience, Timely};
use tower::Service as TowerService;

use crate::access::Reach;
use crate::config::Config;
use crate::service::Service;
use crate::{access, fastchat, http};

/// The controller as a service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Front {
    busy: Arc<Busy>,
    router: Router,
    body_timeout: Duration,
}

/// What busy calls need.
struct Busy {
    service: Arc<Service>,
    reach: Reach,
    body_limit: usize,
}

/// The calls that come with every request, and with every heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Dispatch,
    Release,
    Heartbeat,
    Lookup,
    FastChatBeat,
}

impl Route {
    fn of(method: &Method, path: &str) -> Option<Self> {
        if method != Method::POST {
            return None;
        }
        match path {
            "/dispatch" => Some(Self::Dispatch),
            "/release" => Some(Self::Release),
            "/heartbeat" => Some(Self::Heartbeat),
            "/get_worker_address" => Some(Self::Lookup),
            "/receive_heart_beat" => Some(Self::FastChatBeat),
            _ => None,
        }
    }
}

impl Front {
    /// In front of the router.
    pub(crate) fn new(config: &Config, reach: Reach, service: Arc<Service>, router: Router) -> Self {
        let busy = Busy { service, reach, body_limit: config.body_limit };
        let body_timeout = Patience::draining(config.drain).body;
        Self { busy: Arc::new(busy), router, body_timeout }
    }
}

impl TowerService<Request<Incoming>> for Front {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let route = Route::of(request.method(), request.uri().path());
        let request = request.map(|body| Body::new(Timely::new(body, self.body_timeout)));
        match route {
            Some(route) => {
                let busy = Arc::clone(&self.busy);
                Box::pin(async move { Ok(busy.answer(route, request).await) })
            }
            None => Box::pin(self.router.call(request)),
        }
    }
}

impl Busy {
    async fn answer(&self, route: Route, request: Request<Body>) -> Response {
        let handled = AssertUnwindSafe(self.handle(route, request)).catch_unwind().await;
        match handled {
            Ok(answer) => answer.unwrap_or_else(Problem::into_response),
            Err(panic) => http::panicked(panic),
        }
    }

    async fn handle(&self, route: Route, mut request: Request<Body>) -> Result<Response, Problem> {
        self.reach.check_host(request.headers(), request.uri())?;
        access::check_page(request.headers(), request.uri())?;
        self.service.keys.check_fleet(request.headers())?;
        DefaultBodyLimit::max(self.body_limit).apply(&mut request);
        let service = State(Arc::clone(&self.service));
        Ok(match route {
            Route::Dispatch => http::dispatch(service, body(request).await?).await.into_response(),
            Route::Release => http::release(service, body(request).await?).await.into_response(),
            Route::Heartbeat => http::heartbeat(service, body(request).await?).await.into_response(),
            Route::Lookup => fastchat::get_worker_address(service, body(request).await?).await.into_response(),
            Route::FastChatBeat => fastchat::receive_heart_beat(service, body(request).await?).await.into_response(),
        })
    }
}

async fn body<T: serde::de::DeserializeOwned>(request: Request<Body>) -> Result<serve::Body<T>, Problem> {
    serve::Body::from_request(request, &()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_change_or_ask_are_busy() {
        assert_eq!(Route::of(&Method::POST, "/dispatch"), Some(Route::Dispatch));
        for (method, path) in [
            (Method::GET, "/dispatch"),
            (Method::POST, "/dispatch/"),
            (Method::POST, "/register"),
            (Method::GET, "/fleet"),
        ] {
            assert_eq!(Route::of(&method, path), None, "{method} {path}");
        }
    }
}
