//! Every route and every layer of the gateway, in order.

use std::net::IpAddr;
use std::time::Instant;

use axum::extract::{Request, State as Shared};
use axum::handler::Handler as _;
use axum::http::{HeaderValue, Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, get, post};
use axum::{Json, Router, middleware};
use muster_shared::problem::{Kind, Problem};
use muster_shared::serve;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use crate::observe::Route;
use crate::openai::error;
use crate::outgoing::into_axum;
use crate::state::State;
use crate::{auth, front, inference, models, observe, playground};

/// The gateway's router. `origins`: those whose pages may use the API, as in [`crate::Config::cors_origins`].
pub(crate) fn router(state: State, origins: &[String]) -> Router {
    let listed = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .layer(middleware::from_fn_with_state(state.clone(), auth::require_key))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(observe::observe));
    // These observe and look at keys themselves: see `front`.
    let routes = Route::BUSY.into_iter().flat_map(|route| route.paths().iter().map(move |path| (route, path)));
    let busy = routes
        .fold(Router::new(), |router, (route, path)| router.route(path, busy(route)))
        .method_not_allowed_fallback(method_not_allowed.layer(middleware::from_fn(observe::observe)))
        .route("/v2", any(tensors))
        .route("/v2/{*rest}", any(tensors));
    let api = listed.merge(busy);
    let api = match cors(origins) {
        Some(cors) => api.layer(cors),
        None => api,
    };
    let open = Router::new()
        .route("/health", get(alive))
        .route("/healthz", get(alive))
        .route("/livez", get(alive))
        .route("/ready", get(ready))
        .route("/readyz", get(ready))
        .route("/metrics", get(serve::metrics))
        .route("/version", get(serve::version))
        .merge(playground::routes())
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(middleware::from_fn(observe::observe));
    api.merge(open).layer(CatchPanicLayer::custom(panicked)).with_state(state)
}

/// A route whose answers are a model's.
fn busy(route: Route) -> MethodRouter<State> {
    let answer = move |Shared(state): Shared<State>, request: Request| async move {
        let peer = peer(&request);
        into_axum(front::answer(state, route, request, peer).await)
    };
    post(answer)
}

/// The Open Inference Protocol, whose paths and methods are looked at where they are answered.
async fn tensors(Shared(state): Shared<State>, request: Request) -> Response {
    let route = inference::route(request.method(), request.uri().path()).unwrap_or(Route::Inference);
    let peer = peer(&request);
    into_axum(front::answer(state, route, request, peer).await)
}

fn peer(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<auth::Peer>().map(|peer| peer.0)
}

/// What tells browsers that pages of some origins may use the API; they ask before, so this stands outside of the keys.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        // A text that cannot stand in a header is no browser's origin.
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request()) // `*` would leave out `Authorization`
        .expose_headers(ExposeHeaders::any());
    Some(layer)
}

async fn alive() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "alive" }))
}

async fn ready(Shared(state): Shared<State>) -> Response {
    match state.upstream.view().ready(Instant::now()) {
        Ok(()) => Json(serde_json::json!({ "status": "ready" })).into_response(),
        Err(reason) => into_axum(error::response(&Problem::new(Kind::NoWorker, reason))),
    }
}

async fn not_found(method: Method, uri: Uri) -> Response {
    let (method, path) = (serve::shown(method.as_str()), serve::shown(uri.path()));
    let message = format!("unknown path {method} {path}; the API is below /v1, that for tensors below /v2");
    into_axum(error::response(&Problem::new(Kind::NotFound, message)))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {}", serve::shown(uri.path()), serve::shown(method.as_str()));
    into_axum(error::response(&Problem::new(Kind::MethodNotAllowed, message)))
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    into_axum(error::response(&front::panicked(&*panic)))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use std::sync::Arc;

    use muster_shared::id::GatewayId;
    use muster_shared::secret::Secret;
    use tower::ServiceExt as _;

    use super::*;
    use crate::keys::ApiKey;
    use crate::keys::ring::{Keyring, Keys};
    use crate::upstream::{Common, Upstream};

    /// The status of an answer and the origin that it allows, with a key that nobody knows.
    async fn ask(origins: &[&str], method: Method, path: &str) -> (StatusCode, Option<String>) {
        let state = State {
            upstream: Upstream::new(
                crate::Config::default(),
                GatewayId::new(),
                Common::new(&crate::Config::default(), String::new()),
            ),
            keys: Arc::new(Keys::new(Arc::new(Keyring::new(vec![ApiKey::unnamed(Secret::new("key"), 1)], None)))),
            body_limit: 1,
            started: 0,
        };
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        let request = Request::builder().method(method).uri(path).header("origin", "https://app.example");
        let request = request.header("access-control-request-method", "POST").body(Body::empty()).expect("a request");
        let response = router(state, &origins).oneshot(request).await.expect("an answer");
        let allowed = response.headers().get("access-control-allow-origin");
        (response.status(), allowed.map(|origin| origin.to_str().expect("a text").to_owned()))
    }

    #[tokio::test]
    async fn only_pages_of_named_origins_may_ask_and_never_for_metrics() {
        const CHAT: &str = "/v1/chat/completions";
        let here = Some("https://app.example".to_owned());
        let (refused, unfit) = (StatusCode::UNAUTHORIZED, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(ask(&[], Method::POST, CHAT).await, (refused, None));
        assert_eq!(ask(&[], Method::OPTIONS, CHAT).await, (unfit, None));
        for (origins, allowed) in
            [(["*"], Some("*".to_owned())), (["https://app.example"], here), (["https://other.example"], None)]
        {
            assert_eq!(ask(&origins, Method::POST, CHAT).await, (refused, allowed.clone()), "{origins:?}");
            assert_eq!(ask(&origins, Method::OPTIONS, CHAT).await, (StatusCode::OK, allowed), "{origins:?}");
            assert_eq!(ask(&origins, Method::GET, "/metrics").await, (StatusCode::OK, None), "{origins:?}");
            assert_eq!(ask(&origins, Method::POST, "/metrics").await, (unfit, None), "{origins:?}");
        }
    }
}
