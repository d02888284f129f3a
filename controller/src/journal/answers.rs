//! `GET /explain/ID` and `GET /journal`.
//!
//! Both take what they need under the desk's lock, which is one block and references to the others, and do all else in
//! threads of their own: ten thousand workers are put in order again, or ten thousand decisions written.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use muster_shared::journal::{self, Explanation};
use muster_shared::problem::{Kind, Problem};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{Clock, Snapshot};
use crate::http::{Reply, Shared};
use crate::registry::{Registry, millis};
use crate::service::Service;

/// Bytes that are sent at once.
const CHUNK: usize = 64 << 10;
/// Chunks that are ready before one who reads slowly takes them.
const AHEAD: usize = 2;
/// Time in which one who reads must take a chunk.
const STALLED: Duration = Duration::from_secs(30);
/// Answers that are made at the same time: each takes a thread, and holds decisions that may have been dropped since.
pub(crate) const READERS: usize = 4;

/// The routes.
pub(crate) fn routes() -> Router<Arc<Service>> {
    Router::new().route("/explain/{request}", get(explain)).route("/journal", get(journal))
}

async fn explain(State(service): Shared, path: Result<Path<String>, PathRejection>) -> Reply<Explanation> {
    let Path(request) = path.map_err(|error| Problem::invalid("request", error.body_text()))?;
    let reader = reader(&service)?;
    let (snapshot, clock) = taken(&service)?;
    let explained = tokio::task::spawn_blocking(move || {
        let _until_done = reader; // though nobody may wait for it any more
        snapshot.explain(&request, clock)
    });
    let explained = explained.await;
    explained.map_err(|_| Problem::new(Kind::Bug, "the explanation broke off"))?.map(Json)
}

async fn journal(State(service): Shared) -> Result<Response, Problem> {
    let reader = reader(&service)?;
    let (snapshot, clock) = taken(&service)?;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(AHEAD);
    let runtime = Handle::current();
    // Whether somebody has taken it. One who reads nothing is cut off: the thread is wanted.
    let send = move |chunk| runtime.block_on(sender.send_timeout(chunk, STALLED)).is_ok();
    // Ends by itself: with the last line, or when nobody listens any more.
    tokio::task::spawn_blocking(move || {
        let _until_done = reader;
        let mut chunk = Vec::with_capacity(CHUNK);
        for line in snapshot.lines(clock) {
            if let Err(error) = serde_json::to_writer(&mut chunk, &line) {
                send(Err(error.into()));
                return;
            }
            chunk.push(b'\n');
            if chunk.len() >= CHUNK && !send(Ok(std::mem::take(&mut chunk).into())) {
                return;
            }
        }
        send(Ok(chunk.into()));
    });
    let body = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    Ok(([(header::CONTENT_TYPE, journal::CONTENT_TYPE)], Body::from_stream(body)).into_response())
}

/// The right to make an answer.
fn reader(service: &Service) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(&service.journal_readers).try_acquire_owned().map_err(|_| {
        let message = format!("{READERS} answers about past decisions are being made, and no more may be; try again");
        Problem::new(Kind::NoWorker, message).with_retry_after_ms(1000)
    })
}

/// The journal as it is now.
fn taken(service: &Service) -> Result<(Snapshot, Clock), Problem> {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis);
    let (journal, now) = service.read(|registry: &Registry, now| (registry.journal(), now));
    let snapshot = journal.ok_or_else(|| {
        let message =
            "this controller keeps no journal: it was started with --journal 0; give it a number of decisions";
        Problem::new(Kind::NotFound, message).with_param("journal")
    })?;
    Ok((snapshot, Clock { now, unix_ms }))
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::config::Config;

    #[test]
    fn only_some_answers_are_made_at_the_same_time() {
        let service = Service::new(&Config::default(), CancellationToken::new());
        let readers: Vec<_> = (0..READERS).map(|_| reader(&service).expect("there is room")).collect();
        let problem = reader(&service).expect_err("there is none");
        assert_eq!((problem.kind, problem.retry_after_ms), (Kind::NoWorker, Some(1000)));
        drop(readers);
        drop(reader(&service).expect("there is room again"));
    }
}
