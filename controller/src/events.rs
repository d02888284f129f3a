//! `GET /events`: the picture, and then what changes about it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use muster_shared::problem::{Kind, Problem};
use muster_shared::sse;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::http::Shared;
use crate::service::Service;
use crate::topology::{Snapshot, VIEWERS};

/// Silence after which a stream says that it lives, so that neither side nor a proxy between them takes it for dead.
const SILENCE: Duration = Duration::from_secs(15);
/// A comment, which means nothing.
const ALIVE: &[u8] = b": alive\n\n";

/// Opens a stream of events.
pub(crate) async fn open(State(service): Shared) -> Result<Response, Problem> {
    let seat = Arc::clone(&service.scene.seats).try_acquire_owned().map_err(|_| full())?;
    let shown = service.scene.look();
    let viewer = Viewer { service, shown, said: None, _seat: seat };
    let events = stream::unfold(viewer, async |mut viewer| {
        let event = viewer.next().await?;
        Some((Ok::<_, Infallible>(event), viewer))
    });
    // `no-transform` and the third: a proxy must not hold events back.
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/event-stream"),
        (header::CACHE_CONTROL.as_str(), "no-store, no-transform"),
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

fn full() -> Problem {
    let message = format!(
        "{VIEWERS} streams of /events are open, and no more may be; close one, or ask for /topology now and then"
    );
    Problem::new(Kind::NoWorker, message).with_retry_after_ms(5000)
}

/// One who looks.
struct Viewer {
    service: Arc<Service>,
    shown: watch::Receiver<Option<Arc<Snapshot>>>,
    /// What it was told last. One that reads slowly is told how the latest differs from it, and nothing in between.
    said: Option<Arc<Snapshot>>,
    _seat: OwnedSemaphorePermit,
}

impl Viewer {
    /// The next event; `None` when the controller stops.
    async fn next(&mut self) -> Option<Bytes> {
        let Some(said) = self.said.clone() else { return Some(self.whole(Arc::new(self.service.topology()))) };
        loop {
            let shown = tokio::select! {
                biased;
                () = self.service.shutdown.cancelled() => return None,
                shown = self.shown.changed() => shown.ok().and_then(|()| self.shown.borrow_and_update().clone())?,
                () = tokio::time::sleep(SILENCE) => return Some(Bytes::from_static(ALIVE)),
            };
            if shown.taken <= said.taken {
                continue; // it was made before the first event
            }
            if shown.era != said.era {
                return Some(self.whole(shown)); // the same moments have other numbers now
            }
            let event = self.service.scene.difference(&said, &shown);
            self.said = Some(shown);
            return Some(event);
        }
    }

    fn whole(&mut self, snapshot: Arc<Snapshot>) -> Bytes {
        let event = sse::named_event("topology", &snapshot.topology);
        self.said = Some(snapshot);
        event
    }
}
