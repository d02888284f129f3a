//! FastChat's controller interface: the same routes and bodies, without the faults.
//!
//! Unlike the original, nothing here empties or blocks the registry, a listing changes nothing, and a bad body is a 4xx
//! with a reason. Registration answers 4xx when it failed; the original says 200.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use muster_shared::control::{ModelCard, Registration};
use muster_shared::fastchat::{
    HeartBeat, HeartBeatReply, ModelList, ModelQuery, RegisterWorker, WorkerAddress, WorkerStatus,
};
use muster_shared::id::WorkerId;
use muster_shared::problem::{Kind, Problem};
use muster_shared::serve::Body;
use muster_shared::transport::Transport;
use serde_json::Value;

use crate::http::{Reply, Shared, report_registration};
use crate::registry::{Origin, clamp};
use crate::service::Service;
use crate::{metrics, registration};

pub(crate) mod refresh;
mod relay;

/// The ten routes.
pub(crate) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/register_worker", post(register_worker))
        .route("/refresh_all_workers", post(refresh_all_workers))
        .route("/list_models", post(list_models))
        .route("/list_multimodal_models", post(list_multimodal_models))
        .route("/list_language_models", post(list_language_models))
        .route("/get_worker_address", post(get_worker_address))
        .route("/receive_heart_beat", post(receive_heart_beat))
        .route("/worker_generate_stream", post(relay::worker_generate_stream))
        .route("/worker_get_status", post(worker_get_status))
        .route("/test_connection", get(test_connection))
}

async fn register_worker(State(service): Shared, body: Result<Body<Value>, Problem>) -> Reply<()> {
    let result = match body {
        Ok(Body(body)) => try_register(&service, body).await,
        Err(problem) => Err(problem),
    };
    report_registration(&result);
    result.map(Json)
}

async fn try_register(service: &Service, body: Value) -> Result<(), Problem> {
    let RegisterWorker { worker_name, check_heart_beat, worker_status, multimodal } = parse_registration(body)?;
    registration::check_address(&worker_name, "worker_name")?;
    let mut status = match worker_status {
        Some(status) => status,
        None => {
            service.outbound.ask_status(&worker_name).await.map_err(|reason| Problem::invalid("worker_name", reason))?
        }
    };
    registration::check_status(&mut status)?;
    let origin = Origin::FastChat { beats: check_heart_beat, multimodal, queue_length: clamp(status.queue_length) };
    let registration = Registration {
        id: WorkerId::new(worker_name.clone()),
        address: worker_name,
        incarnation: 0,
        transport: Transport::FastChat,
        models: status.model_names.into_iter().map(ModelCard::bare).collect(),
        speed: status.speed,
        version: String::new(),
        capabilities: None,
    };
    service.change(|registry, now| registry.register(registration, origin, now)).map(drop)
}

/// An empty state stands for none, as in the original.
fn parse_registration(mut body: Value) -> Result<RegisterWorker, Problem> {
    if let Some(fields) = body.as_object_mut()
        && fields.get("worker_status").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty)
    {
        fields.remove("worker_status");
    }
    serde_json::from_value(body)
        .map_err(|error| Problem::new(Kind::Invalid, format!("the body is not what this path expects: {error}")))
}

/// Has the workers asked in the background. Whoever lists models next sees what is known by then.
async fn refresh_all_workers(State(service): Shared) -> Json<()> {
    service.refresh.notify_one();
    Json(())
}

async fn list_models(State(service): Shared) -> Json<ModelList> {
    models(&service, None)
}

async fn list_multimodal_models(State(service): Shared) -> Json<ModelList> {
    models(&service, Some(true))
}

async fn list_language_models(State(service): Shared) -> Json<ModelList> {
    models(&service, Some(false))
}

fn models(service: &Service, multimodal: Option<bool>) -> Json<ModelList> {
    Json(ModelList { models: service.read(|registry, now| registry.model_names(multimodal, now)) })
}

pub(crate) async fn get_worker_address(State(service): Shared, Body(query): Body<ModelQuery>) -> Json<WorkerAddress> {
    let address = service.lookup(&query.model);
    metrics::looked_up(address.is_some());
    Json(WorkerAddress { address: address.unwrap_or_default() })
}

pub(crate) async fn receive_heart_beat(State(service): Shared, Body(beat): Body<HeartBeat>) -> Json<HeartBeatReply> {
    let id = WorkerId::new(beat.worker_name);
    let exist = service.change(|registry, now| registry.fastchat_beat(&id, clamp(beat.queue_length), now));
    metrics::beaten(if exist { "renewed" } else { "unknown" });
    Json(HeartBeatReply { exist })
}

async fn worker_get_status(State(service): Shared) -> Json<WorkerStatus> {
    Json(service.read(|registry, now| registry.as_one_worker(now)))
}

async fn test_connection() -> Json<&'static str> {
    Json("success")
}
