//! A second attempt beside a first one that is slow to begin. Off unless a time for it is configured.
//!
//! The first to begin its answer gives it; the other is dropped, which cancels it and gives its ticket back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{self, BoxFuture, Either};
use futures_util::stream;
use muster_shared::client::ClientError;
use muster_shared::generate::{Event, GenerateRequest};
use muster_shared::problem::Problem;

use super::answer::Events;
use super::job::Job;
use super::passthrough::Raw;
use super::peer::Peer;
use super::{Filled, Open, Opened, Question, Upstream};
use crate::metrics;

/// A request that two attempts can ask at once: whatever can be read of it has been.
struct Ready<T> {
    raw: Option<Raw>,
    ours: Result<Arc<T>, Problem>,
}

impl<T: Send + Sync> Question for Ready<T> {
    type Ours = T;

    fn raw(&self) -> Option<&Raw> {
        self.raw.as_ref()
    }

    async fn read(&mut self) -> Result<Arc<T>, Problem> {
        self.ours.clone()
    }
}

/// Makes attempts, and others beside them when none has begun to answer after that time.
///
/// # Errors
/// Why the first ones failed, when all have.
pub(super) async fn begin<Q: Question, T: Send>(
    upstream: &Upstream,
    question: &mut Q,
    job: &mut Job,
    (open, after): (Open<Q::Ours, T>, Duration),
) -> Result<Opened<T>, Problem> {
    let ours = question.read().await;
    let ready = || Ready { raw: question.raw().cloned(), ours: ours.clone() };
    let (mut ready_first, mut ready_second) = (ready(), ready());
    let (mut second_job, hedged) = (job.again(), AtomicBool::new(false));
    let opened = {
        let first = Box::pin(upstream.attempt(&mut ready_first, job, open));
        let second = Box::pin(async {
            tokio::time::sleep(after).await;
            hedged.store(true, Ordering::Relaxed);
            second_job.spare_latest();
            metrics::hedge();
            upstream.attempt(&mut ready_second, &mut second_job, open).await
        });
        match future::select(first, second).await {
            Either::Left((Ok(opened), _)) => return Ok(opened),
            // What is on its way beside it may still do.
            Either::Left((Err(problem), second)) if hedged.load(Ordering::Relaxed) => {
                second.await.map_err(|_| problem)?
            }
            Either::Left((Err(problem), _)) => return Err(problem),
            Either::Right((Ok(opened), _)) => opened,
            Either::Right((Err(_), first)) => return first.await,
        }
    };
    *job = second_job;
    Ok(opened)
}

/// The events of a worker, once something of an answer is among them.
pub(super) fn open_begun(
    upstream: Upstream,
    peer: Arc<Peer>,
    request: Arc<GenerateRequest>,
    filled: Filled,
) -> BoxFuture<'static, Result<Events, ClientError>> {
    Box::pin(async move {
        let mut events = upstream.open_events(peer, request, filled).await?;
        let mut seen = Vec::new();
        while let Some(event) = events.next().await {
            let event = event?;
            let begun = !matches!(event, Event::Started { .. });
            seen.push(Ok(event));
            if begun {
                break;
            }
        }
        Ok(stream::iter(seen).chain(events).boxed())
    })
}
