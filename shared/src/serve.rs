//! Serving a router, draining it, and the few answers every service gives alike.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::problem::{Kind, Problem};
use crate::secret::Secret;
use crate::telemetry;

/// Serves `router` until `shutdown`; then takes no more connections, and gives those that run `drain` to end.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    drain: Duration,
) -> std::io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // Small events must leave at once; a failure here costs latency only.
        let _ = stream.set_nodelay(true);
    });
    let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        result = served.into_future() => result,
        () = too_late => {
            tracing::warn!(?drain, "requests still ran when the time to drain was over; they are cut off");
            Ok(())
        }
        () = telemetry::metrics_upkeep() => Ok(()),
    }
}

/// SIGTERM and Ctrl-C, as they come.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Panics
    /// When the process cannot install signal handlers.
    pub fn install() -> Self {
        let install = |kind| signal(kind).expect("signal handlers can be installed");
        Self { terminate: install(SignalKind::terminate()), interrupt: install(SignalKind::interrupt()) }
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after_seconds();
        let mut response = (status, Json(self)).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A JSON body, whatever its `Content-Type` says, as FastChat's peers expect; a bad one is a [`Problem`].
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                Problem::new(Kind::TooLarge, "the body is too large for this service")
            } else {
                Problem::new(Kind::Invalid, format!("cannot read the body: {rejection}"))
            }
        })?;
        serde_json::from_slice(&bytes)
            .map(Body)
            .map_err(|error| Problem::new(Kind::Invalid, format!("the body is not what this path expects: {error}")))
    }
}

/// Answers a path that does not exist.
pub async fn not_found(uri: Uri) -> Problem {
    Problem::new(Kind::NotFound, format!("there is nothing at {}", uri.path()))
}

/// Answers a method that a path does not take.
pub async fn method_not_allowed(method: axum::http::Method, uri: Uri) -> Problem {
    Problem::new(Kind::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
}

/// The key of a request: `Authorization: Bearer KEY`, or `x-api-key: KEY`.
pub fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
}

/// Middleware: lets a request pass only with the fleet's token, where there is one.
///
/// # Errors
/// [`Kind::BadKey`] without the token.
pub async fn require_token(
    State(token): State<Option<Secret>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    check_token(token.as_ref(), request.headers())?;
    Ok(next.run(request).await)
}

/// Whether a request shows the fleet's token, where there is one.
///
/// # Errors
/// [`Kind::BadKey`] without the token.
pub fn check_token(token: Option<&Secret>, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(token) = token else { return Ok(()) };
    match presented_key(headers) {
        Some(given) if token.matches(given) => Ok(()),
        Some(_) => Err(Problem::new(Kind::BadKey, "the fleet token is wrong")),
        None => {
            Err(Problem::new(Kind::BadKey, "this service wants the fleet token: send `Authorization: Bearer TOKEN`"))
        }
    }
}

/// `GET /metrics`, in Prometheus' text format.
pub async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::render_metrics())
}

/// `GET /version`.
pub async fn version() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "name": "muster", "version": env!("CARGO_PKG_VERSION") }))
}
