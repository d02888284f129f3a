//! Keeps one server in the fleet: registers it, beats while it answers, and is silent when it is, so that its lease
//! ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_shared::client::{ClientError, ControllerClient};
use muster_shared::control::{Heartbeat, HeartbeatReply, Lease, Leave, ModelCard, Registration};
use muster_shared::problem::chain;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::server::{Absence, Sighting};
use crate::config::{Offer, Target};
use crate::services::say;

/// First and longest pause between two attempts to register.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// Time between two looks whether the last request has ended.
const LOOK: Duration = Duration::from_millis(200);

/// A registration that holds, as far as is known.
#[derive(Debug, Clone)]
struct Membership {
    models: Vec<ModelCard>,
    incarnation: u64,
    heartbeat: Duration,
}

/// Why the controller could not be told something. The same twice is said once.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    /// It does not answer, in whichever way.
    Silence,
    /// It answers this.
    Answer(String),
}

impl Trouble {
    fn of(error: &ClientError) -> Self {
        match error {
            ClientError::Unreachable { .. } | ClientError::Broken { .. } => Self::Silence,
            ClientError::Refused { .. } | ClientError::Unexpected { .. } => Self::Answer(error.to_string()),
        }
    }
}

/// Keeps one server in the fleet.
#[derive(Debug)]
pub(super) struct Keeper {
    target: Target,
    offer: Offer,
    client: ControllerClient,
    /// What the server serves; `None` while it is away.
    models: Option<Vec<ModelCard>>,
    /// Why it is away.
    absence: Option<Absence>,
    membership: Option<Membership>,
    /// When the controller is to be spoken to next; `None` while there is nothing to say.
    due: Option<Instant>,
    pause: Duration,
    trouble: Option<Trouble>,
}

impl Keeper {
    /// A keeper of a server that has not been seen yet.
    pub(super) fn new(target: Target, offer: Offer, client: ControllerClient) -> Self {
        Self {
            target,
            offer,
            client,
            models: None,
            absence: None,
            membership: None,
            due: None,
            pause: BACKOFF[0],
            trouble: None,
        }
    }

    /// Works until `stop`; then asks for no more requests, gives those that run `drain` to end, and ends the lease.
    pub(super) async fn work(
        mut self,
        mut sightings: mpsc::Receiver<Sighting>,
        drain: Duration,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(sighting) = sightings.recv() => self.see(sighting),
                () = until(self.due) => self.speak().await,
            }
        }
        if let Some(membership) = self.membership.clone() {
            self.leave(membership, drain).await;
        }
    }

    /// Notes how the server was found. Nothing is said to the controller of one that is away.
    fn see(&mut self, sighting: Sighting) {
        let server = &self.target.address;
        match sighting {
            Ok(models) => {
                if self.absence.take().is_some() {
                    tracing::info!(server, "the server answers");
                }
                if self.models.as_ref() != Some(&models) {
                    self.models = Some(models);
                    self.due = Some(Instant::now());
                }
            }
            Err(away) => {
                match self.absence.replace(away.absence) {
                    Some(before) if before == away.absence => {}
                    // On its way up, most likely.
                    Some(_) if away.absence != Absence::Stranger => {
                        tracing::info!(server, reason = %away, "the server is still no worker");
                    }
                    _ => {
                        tracing::warn!(server, reason = %away, "the server is no worker now; it will be when it answers")
                    }
                }
                self.models = None;
                self.due = None;
            }
        }
    }

    /// Tells the controller what is due.
    async fn speak(&mut self) {
        let Some(models) = self.models.clone() else { return };
        let wait = match self.membership.clone() {
            Some(membership) if membership.models == models => self.beat(&membership).await,
            _ => self.register(models).await,
        };
        self.due = Some(Instant::now() + wait);
    }

    /// Registers; gives the time until the controller is to be spoken to again.
    async fn register(&mut self, models: Vec<ModelCard>) -> Duration {
        // A server whose models change is the same server, and keeps its tickets.
        let incarnation = self.membership.as_ref().map_or_else(milliseconds, |membership| membership.incarnation);
        let registration = Registration {
            id: self.target.id.clone(),
            address: self.target.address.clone(),
            incarnation,
            transport: self.offer.transport,
            models: models.clone(),
            speed: self.offer.speed,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: None,
        };
        match self.client.register(&registration).await {
            Ok(lease) => {
                self.announce(&models);
                let heartbeat = interval(lease);
                self.membership = Some(Membership { models, incarnation, heartbeat });
                (self.pause, self.trouble) = (BACKOFF[0], None);
                jittered(heartbeat)
            }
            Err(error) => {
                self.complain(&error, "cannot register the server; will try again");
                let pause = self.pause;
                self.pause = (pause * 2).min(BACKOFF[1]);
                jittered(pause)
            }
        }
    }

    /// Says on standard output that the server is a worker.
    fn announce(&self, models: &[ModelCard]) {
        let names: Vec<_> = models.iter().map(|card| card.name.as_str()).collect();
        say(&format!("attached {} ({}): {}", self.target.address, self.offer.transport, names.join(", ")));
    }

    /// Beats; gives the time until the controller is to be spoken to again.
    async fn beat(&mut self, membership: &Membership) -> Duration {
        // What the server has to do besides the controller's own tickets is not known.
        let beat = Heartbeat::bare(self.target.id.clone(), membership.incarnation);
        match self.client.heartbeat(&beat).await {
            Ok(HeartbeatReply::Renewed(renewal)) => {
                if self.trouble.take().is_some() {
                    tracing::info!(server = self.target.address, "the controller answers again");
                }
                jittered(interval(renewal.lease))
            }
            Ok(HeartbeatReply::Unknown) => {
                tracing::info!(
                    server = self.target.address,
                    "the controller does not know the server; registering again"
                );
                self.membership = None;
                Duration::ZERO
            }
            // The lease outlives a lost beat; the next one is on its way.
            Err(error) => {
                self.complain(&error, "heartbeat failed");
                jittered(membership.heartbeat)
            }
        }
    }

    fn complain(&mut self, error: &ClientError, what: &str) {
        let (server, controller, trouble) = (&self.target.address, self.client.address(), Trouble::of(error));
        if self.trouble.as_ref() == Some(&trouble) {
            tracing::debug!(server, controller, error = chain(error), "{what}");
        } else {
            tracing::warn!(server, controller, error = chain(error), "{what}");
            self.trouble = Some(trouble);
        }
    }

    async fn leave(&mut self, membership: Membership, drain: Duration) {
        let (server, leave) = (
            self.target.address.clone(),
            Leave { id: self.target.id.clone(), incarnation: Some(membership.incarnation) },
        );
        if let Err(error) = self.client.drain(&leave).await {
            tracing::debug!(server, error = chain(&error), "could not tell the controller to drain");
        }
        if timeout(drain, self.wait_for_tickets(&membership)).await.is_err() {
            tracing::warn!(server, ?drain, "requests still run on the server; it leaves the fleet all the same");
        }
        match self.client.deregister(&leave).await {
            Ok(()) => tracing::info!(server, "deregistered"),
            Err(error) => {
                tracing::warn!(server, error = chain(&error), "could not deregister; the lease ends by itself");
            }
        }
    }

    /// Waits until no request runs on the server, and keeps its lease meanwhile.
    async fn wait_for_tickets(&mut self, membership: &Membership) {
        let mut due = Instant::now();
        while self.tickets(membership).await > 0 {
            if due <= Instant::now() {
                due = Instant::now() + self.beat(membership).await;
            }
            sleep(LOOK).await;
        }
    }

    /// Requests that run on the server; none when the controller knows of none, or is away.
    async fn tickets(&self, membership: &Membership) -> u32 {
        let Ok(fleet) = self.client.fleet().await else { return 0 };
        let mut named = fleet.workers.iter().filter(|worker| worker.id == self.target.id);
        let worker = named.find(|worker| worker.incarnation == membership.incarnation);
        worker.map_or(0, |worker| worker.tickets)
    }
}

/// Resolves at that moment, or never.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Milliseconds since 1970.
fn milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn interval(lease: Lease) -> Duration {
    Duration::from_millis(lease.heartbeat_ms.max(1))
}

/// A duration some 10 % shorter at random, so that servers attached together do not beat together.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::random_range(0.9..=1.0))
}
