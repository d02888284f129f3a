//! A request in flight on a worker, released however it ends.

use std::sync::Arc;
use std::time::Duration;

use muster_shared::client::ControllerClient;
use muster_shared::control::{self, Outcome, Release};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use tokio::sync::mpsc;

use crate::metrics;
use muster_shared::problem::chain;

/// Releases that may wait for the controller: many more than requests end during one call to it.
const WAITING: usize = 8192;
/// Releases in one message.
const BATCH: usize = 512;

/// Takes releases to the controller. Cheap to clone.
pub(crate) type Releases = mpsc::Sender<Release>;

/// The two ends of the way to the controller.
pub(crate) fn channel() -> (Releases, mpsc::Receiver<Release>) {
    mpsc::channel(WAITING)
}

/// Sends releases until every sender is gone: whatever collects during one call goes with the next.
pub(crate) async fn deliver(controller: ControllerClient, gateway: GatewayId, mut releases: mpsc::Receiver<Release>) {
    let mut batch = Vec::with_capacity(BATCH);
    while releases.recv_many(&mut batch, BATCH).await > 0 {
        let message = control::Releases { gateway, releases: std::mem::take(&mut batch) };
        // A connection kept alive may have died in the meantime: once more on a new one.
        if controller.release(&message).await.is_err()
            && let Err(error) = controller.release(&message).await
        {
            // The controller counts anew when it is back, and lets go of tickets that its workers do not know.
            tracing::debug!(tickets = message.releases.len(), error = chain(&error), "tickets could not be released");
            metrics::releases_lost(message.releases.len());
        }
    }
}

/// A request in flight on a worker. Dropping it releases it, as cancelled unless [`Ticket::end`] said otherwise.
#[derive(Debug)]
pub(crate) struct Ticket {
    worker: WorkerId,
    hold: Hold,
    outcome: Outcome,
    ttft: Option<Duration>,
    tokens: u32,
}

/// What counts the request.
#[derive(Debug)]
enum Hold {
    /// The controller.
    Leased { id: TicketId, releases: Releases },
    /// This gateway alone, while the controller does not answer: one more reference than the view itself holds.
    Local { _count: Arc<()> },
}

impl Ticket {
    /// A ticket of the controller.
    pub(crate) fn leased(id: TicketId, worker: WorkerId, releases: Releases) -> Self {
        Self::new(worker, Hold::Leased { id, releases })
    }

    /// A request that only this gateway counts.
    pub(crate) fn local(worker: WorkerId, count: Arc<()>) -> Self {
        Self::new(worker, Hold::Local { _count: count })
    }

    fn new(worker: WorkerId, hold: Hold) -> Self {
        metrics::in_flight(1);
        Self { worker, hold, outcome: Outcome::Cancelled, ttft: None, tokens: 0 }
    }

    /// The worker that runs the request.
    pub(crate) fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// How the request ended, as far as was said.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Says how the request ended.
    pub(crate) fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Counts tokens of the answer; the first call also notes how long the first took.
    pub(crate) fn tokens(&mut self, tokens: usize, since_start: Duration) {
        self.ttft.get_or_insert(since_start);
        self.tokens = self.tokens.saturating_add(u32::try_from(tokens).unwrap_or(u32::MAX));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        metrics::in_flight(-1);
        let Hold::Leased { id, releases } = &self.hold else { return };
        let release = Release {
            ticket: *id,
            outcome: self.outcome,
            ttft_ms: self.ttft.map(|ttft| u64::try_from(ttft.as_millis()).unwrap_or(u64::MAX)),
            tokens: (self.tokens > 0).then_some(self.tokens),
        };
        if releases.try_send(release).is_err() {
            tracing::warn!(ticket = %id, "a ticket could not be released; it lapses at the controller");
            metrics::releases_lost(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_ticket_is_released_as_cancelled_and_an_ended_one_as_it_ended() {
        let (releases, mut received) = channel();
        let ticket = || Ticket::leased(TicketId::new(), WorkerId::new("w"), releases.clone());
        drop(ticket());
        assert_eq!(received.recv().await.map(|release| release.outcome), Some(Outcome::Cancelled));

        let mut ended = ticket();
        ended.tokens(2, Duration::from_millis(7));
        ended.tokens(3, Duration::from_millis(9));
        ended.end(Outcome::Done);
        drop(ended);
        let release = received.recv().await.expect("a release");
        assert_eq!((release.outcome, release.ttft_ms, release.tokens), (Outcome::Done, Some(7), Some(5)));
    }
}
