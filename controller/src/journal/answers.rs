//! `GET /explain/ID` and `GET /journal`.
//!
//! Both take what they need under the desk's lock, which is one block and references to the others, and do all else in
//! threads of their own: ten thousand workers are put in order again, or ten thousand decisions written.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use muster_shared::journal::Explanation;
use muster_shared::problem::{Kind, Problem};
use tokio::sync::mpsc;

use super::{Clock, Snapshot};
use crate::http::{Reply, Shared};
use crate::registry::{Registry, millis};
use crate::service::Service;

/// Bytes that are sent at once.
const CHUNK: usize = 64 << 10;
/// Chunks that are ready before one who reads slowly takes them.
const AHEAD: usize = 2;

/// The routes.
pub(crate) fn routes() -> Router<std::sync::Arc<Service>> {
    Router::new().route("/explain/{request}", get(explain)).route("/journal", get(journal))
}

async fn explain(State(service): Shared, path: Result<Path<String>, PathRejection>) -> Reply<Explanation> {
    let Path(request) = path.map_err(|error| Problem::invalid("request", error.body_text()))?;
    let (snapshot, clock) = taken(&service)?;
    let explained = tokio::task::spawn_blocking(move || snapshot.explain(&request, clock)).await;
    explained.map_err(|_| Problem::new(Kind::Bug, "the explanation broke off"))?.map(Json)
}

async fn journal(State(service): Shared) -> Result<Response, Problem> {
    let (snapshot, clock) = taken(&service)?;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(AHEAD);
    // Ends by itself: with the last line, or when nobody listens any more.
    tokio::task::spawn_blocking(move || {
        let mut chunk = Vec::with_capacity(CHUNK);
        for line in snapshot.lines(clock) {
            if let Err(error) = serde_json::to_writer(&mut chunk, &line) {
                return drop(sender.blocking_send(Err(error.into())));
            }
            chunk.push(b'\n');
            if chunk.len() >= CHUNK && sender.blocking_send(Ok(std::mem::take(&mut chunk).into())).is_err() {
                return;
            }
        }
        drop(sender.blocking_send(Ok(chunk.into())));
    });
    let body = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

/// The journal as it is now.
fn taken(service: &Service) -> Result<(Snapshot, Clock), Problem> {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis);
    let (journal, now) = service.read(|registry: &Registry, now| (registry.journal(), now));
    let snapshot = journal.ok_or_else(|| {
        let message =
            "this controller keeps no journal: it was started with --journal 0; give it a number of decisions";
        Problem::new(Kind::NotFound, message)
    })?;
    Ok((snapshot, Clock { now, unix_ms }))
}
