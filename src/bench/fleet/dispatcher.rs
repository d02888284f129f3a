//! A client of the controller: it asks for a worker, has a request run there for a while, and tells how that ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_shared::client::{ClientError, ControllerClient};
use muster_shared::control::{Dispatch, Grant, Outcome, Release, Releases};
use muster_shared::id::{GatewayId, WorkerId};
use muster_shared::problem::chain;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::member::Member;
use crate::bench::standins::MODEL;

/// Pause after a refusal.
const PAUSE: Duration = Duration::from_millis(10);
/// How many of a hundred requests end otherwise than well, each in one of these ways.
const UNUSUAL: [(Outcome, u32); 3] = [(Outcome::Cancelled, 8), (Outcome::Failed, 3), (Outcome::Overloaded, 3)];

/// One client, which has one request at a time.
pub(super) struct Dispatcher {
    controller: ControllerClient,
    gateway: GatewayId,
    members: Arc<[Arc<Member>]>,
    numbers: HashMap<WorkerId, usize>,
    hold: Duration,
    rng: StdRng,
    seen: Dispatched,
}

/// What dispatchers saw.
#[derive(Debug, Default)]
pub(super) struct Dispatched {
    pub(super) granted: u64,
    pub(super) refused: u64,
    /// Calls that had no answer, or a strange one.
    pub(super) failed: u64,
    pub(super) failure: Option<String>,
    /// Workers that had fallen silent when they were handed out, each with the moment of the question: the controller
    /// decided after it.
    pub(super) silent: Vec<(usize, Instant)>,
}

impl Dispatched {
    pub(super) fn merge(&mut self, other: Self) {
        self.granted += other.granted;
        self.refused += other.refused;
        self.failed += other.failed;
        self.failure = self.failure.take().or(other.failure);
        self.silent.extend(other.silent);
    }
}

impl Dispatcher {
    pub(super) fn new(controller: ControllerClient, members: Arc<[Arc<Member>]>, hold: Duration, seed: u64) -> Self {
        let numbers = members.iter().enumerate().map(|(number, member)| (member.registration.id.clone(), number));
        Self {
            controller,
            gateway: GatewayId::new(),
            numbers: numbers.collect(),
            members,
            hold,
            rng: StdRng::seed_from_u64(seed),
            seen: Dispatched::default(),
        }
    }

    /// Asks until all is over.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Dispatched {
        while !stop.is_cancelled() {
            let asked = Instant::now();
            match self.controller.dispatch(&Dispatch::new(self.gateway, MODEL)).await {
                Ok(grant) => self.work(asked, grant).await,
                Err(ClientError::Refused { .. }) => {
                    self.seen.refused += 1;
                    sleep(PAUSE).await;
                }
                Err(error) => {
                    self.failed(&error);
                    sleep(PAUSE).await;
                }
            }
        }
        self.seen
    }

    /// Runs a request on the worker, and ends it.
    async fn work(&mut self, asked: Instant, grant: Grant) {
        self.seen.granted += 1;
        let Some(&number) = self.numbers.get(&grant.worker) else {
            self.seen.failed += 1;
            self.seen.failure.get_or_insert_with(|| format!("`{}` was handed out, which is no worker", grant.worker));
            return;
        };
        let member = Arc::clone(&self.members[number]);
        if member.is_silent() {
            self.seen.silent.push((number, asked));
        }
        member.begin();
        sleep(self.hold.mul_f64(self.rng.random_range(0.0..1.0))).await;
        member.end();
        // The controller must find out by itself that a worker is silent: its client left, and that tells nothing.
        let outcome = if member.is_silent() { Outcome::Cancelled } else { self.outcome() };
        let releases = vec![Release { ticket: grant.ticket, outcome, ttft_ms: None, tokens: None }];
        if let Err(error) = self.controller.release(&Releases { gateway: self.gateway, releases }).await {
            self.failed(&error);
        }
    }

    fn outcome(&mut self) -> Outcome {
        let mut drawn = self.rng.random_range(0..100);
        for (outcome, share) in UNUSUAL {
            if drawn < share {
                return outcome;
            }
            drawn -= share;
        }
        Outcome::Done
    }

    fn failed(&mut self, error: &ClientError) {
        self.seen.failed += 1;
        self.seen.failure.get_or_insert_with(|| chain(error));
    }
}
