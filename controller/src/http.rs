//! Every route of the controller, and the handlers of our own interface.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use muster_shared::control::{
    Dispatch, Fleet, Grant, Heartbeat, HeartbeatReply, Lease, Leave, Registration, Releases, Renew,
};
use muster_shared::problem::{Kind, Problem};
use muster_shared::serve::{self, Body};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;

use crate::access::Reach;
use crate::config::Config;
use crate::desk::Patience;
use crate::registry::{Asker, Holder, Note, Origin, Request};
use crate::service::{self, Service};
use crate::{access, events, fastchat, journal, link, metrics, page, registration, topology};

/// What a handler answers.
pub(crate) type Reply<T> = Result<Json<T>, Problem>;
/// What every handler shares.
pub(crate) type Shared = State<Arc<Service>>;

/// Every route: our own and FastChat's behind the fleet token, what operators ask behind that or their key; health,
/// metrics and the page's files open.
pub(crate) fn router(config: &Config, reach: Reach, service: Arc<Service>) -> Router {
    let native = Router::new()
        .route("/register", post(register))
        .route("/heartbeat", post(heartbeat))
        .route("/dispatch", post(dispatch))
        .route("/release", post(release))
        .route("/renew", post(renew))
        .route("/link", get(link::open));
    // Handlers of what changes something know who may do so.
    let operators = Router::new()
        .route("/drain", post(drain))
        .route("/resume", post(resume))
        .route("/deregister", post(deregister))
        .route("/fleet", get(fleet))
        .route("/topology", get(topology::show))
        .route("/events", get(events::open))
        .merge(journal::routes())
        .route_layer(middleware::from_fn_with_state(Arc::clone(&service), access::require_any));
    let open = Router::new()
        .route("/health", get(alive))
        .route("/healthz", get(alive))
        .route("/livez", get(alive))
        .route("/ready", get(ready))
        .route("/readyz", get(ready))
        .route("/metrics", get(render_metrics))
        .route("/version", get(serve::version))
        .merge(page::routes());
    native
        .merge(fastchat::routes())
        .route_layer(middleware::from_fn_with_state(config.token.clone(), serve::require_token))
        .merge(operators)
        .route_layer(middleware::from_fn_with_state(reach, access::require_own_page))
        .merge(open)
        .fallback(serve::not_found)
        .method_not_allowed_fallback(serve::method_not_allowed)
        .layer(DefaultBodyLimit::max(config.body_limit))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TraceLayer::new_for_http().on_failure(())) // a refusal is no failure; what is one logs itself
        .with_state(service)
}

async fn register(State(service): Shared, body: Result<Body<Registration>, Problem>) -> Reply<Lease> {
    let lease = match body {
        Ok(Body(registration)) => try_register(&service, registration).await,
        Err(problem) => Err(problem),
    };
    report_registration(&lease);
    lease.map(Json)
}

async fn try_register(service: &Service, mut registration: Registration) -> Result<Lease, Problem> {
    registration.address.truncate(registration.address.trim_end_matches('/').len());
    service.read(|registry, _| registry.refuse_written(&registration.id, &registration.address))?;
    let is_vouched = registration::check(&service.outbound, &registration).await?;
    let elsewhere = service.read(|registry, now| registry.elsewhere(&registration, now));
    if let Some(elsewhere) = &elsewhere {
        registration::check_alone(&service.outbound, elsewhere).await?;
    }
    service.with(|desk, now| {
        desk.warn_of_hidden(&registration.id, &registration.models);
        desk.change(now, |registry| {
            if registry.elsewhere(&registration, now) != elsewhere {
                return Err(registration::another_came(&registration.id)); // while this one was looked at
            }
            if is_vouched {
                registry.believe(&registration, now);
            }
            registry.register(registration, Origin::Native, now)
        })
    })
}

/// Counts a registration, and logs why it was refused.
pub(crate) fn report_registration<T>(result: &Result<T, Problem>) {
    metrics::registered(result.is_ok());
    if let Err(problem) = result {
        tracing::warn!(%problem, kind = ?problem.kind, "a registration was refused");
    }
}

pub(crate) async fn heartbeat(State(service): Shared, Body(beat): Body<Heartbeat>) -> Reply<HeartbeatReply> {
    let reply =
        registration::check_beat(&beat).and_then(|()| service.change(|registry, now| registry.heartbeat(&beat, now)));
    metrics::beaten(match &reply {
        Ok(HeartbeatReply::Renewed(_)) => "renewed",
        Ok(HeartbeatReply::Unknown) => "unknown",
        Err(problem) if problem.kind == Kind::Stale => "stale",
        Err(_) => "refused",
    });
    if let Err(problem) = &reply {
        tracing::warn!(%problem, "a heartbeat was refused");
    }
    reply.map(Json)
}

async fn drain(State(service): Shared, headers: HeaderMap, Body(leave): Body<Leave>) -> Reply<Value> {
    service.keys.check_leave(&leave, &headers)?;
    service.change(|registry, now| registry.drain(&leave, now))?;
    Ok(Json(json!({})))
}

async fn resume(State(service): Shared, headers: HeaderMap, Body(leave): Body<Leave>) -> Reply<Value> {
    service.keys.check_operator(&headers)?;
    service.change(|registry, now| registry.resume(&leave, now))?;
    Ok(Json(json!({})))
}

async fn deregister(State(service): Shared, headers: HeaderMap, Body(leave): Body<Leave>) -> Reply<Value> {
    service.keys.check_leave(&leave, &headers)?;
    service.change(|registry, now| registry.deregister(&leave, now))?;
    Ok(Json(json!({})))
}

pub(crate) async fn dispatch(State(service): Shared, Body(dispatch): Body<Dispatch>) -> Reply<Grant> {
    let gateway = dispatch.gateway;
    let span = service::span(&dispatch);
    let (asker, patience) = question(dispatch);
    let answer = service.dispatch(asker, patience).await;
    span.into_iter().for_each(|span| service::end_span(span, &answer));
    if let Err(problem) = &answer {
        tracing::debug!(%problem, kind = ?problem.kind, %gateway, "a dispatch was refused");
    }
    answer.map(Json)
}

/// A dispatch as the desk takes it.
pub(crate) fn question(dispatch: Dispatch) -> (Asker, Patience) {
    let Dispatch { gateway, request: id, model, exact, affinity, exclude, transports, key, .. } = dispatch;
    let request = Request { model, exact, affinity, exclude, transports };
    let patience = Patience {
        wait: Duration::from_millis(dispatch.wait_ms),
        deadline: dispatch.deadline_ms.map(Duration::from_millis),
        priority: dispatch.priority,
        key_priority: dispatch.key_priority,
    };
    let note = Note { request: id.map(Arc::from), ..Note::default() };
    (Asker { holder: Holder::Gateway(gateway), key: key.map(Arc::from), request, note }, patience)
}

pub(crate) async fn release(
    State(service): Shared,
    Body(Releases { gateway, releases }): Body<Releases>,
) -> Json<Value> {
    service.with(|desk, now| {
        desk.change(now, |registry| registry.renew(gateway, now));
        for release in &releases {
            desk.release(Holder::Gateway(gateway), release, now);
        }
    });
    releases.iter().for_each(|release| metrics::released(release.outcome));
    Json(json!({}))
}

async fn renew(State(service): Shared, Body(Renew { gateway }): Body<Renew>) -> Json<Fleet> {
    service.change(|registry, now| registry.renew(gateway, now));
    Json(service.fleet())
}

async fn fleet(State(service): Shared) -> Json<Fleet> {
    Json(service.fleet())
}

async fn alive() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// Ready from the first moment: a controller without workers answers truthfully that it has none.
async fn ready(State(service): Shared) -> Reply<Value> {
    if service.shutdown.is_cancelled() {
        return Err(Problem::new(Kind::NoWorker, "the controller is stopping"));
    }
    Ok(Json(json!({ "status": "ready" })))
}

async fn render_metrics(State(service): Shared) -> impl IntoResponse {
    service.gauge();
    serve::metrics().await
}

pub(crate) fn panicked(_panic: Box<dyn std::any::Any + Send>) -> Response {
    Problem::new(Kind::Bug, "something went wrong in the controller; its log says more").into_response()
}
