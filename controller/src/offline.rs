//! The controller's rules without its clock, its lock and its sockets: for simulations and measurements of what is shipped.

use std::time::Instant;

use muster_shared::control::{
    Dispatch, Grant, Heartbeat, HeartbeatReply, Lease, Leave, Registration, Release, WorkerStatus,
};
use muster_shared::id::GatewayId;
use muster_shared::problem::Problem;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::config::Config;
use crate::desk::{Desk, Setup};
use crate::http::question;
use crate::registration::check_beat;
use crate::registry::{Holder, Origin, Registry};

/// A controller whose time is told by its caller and whose chance is a seed: the same calls give the same answers.
#[derive(Debug)]
pub struct Offline {
    desk: Desk<u64>,
}

impl Offline {
    /// A controller that knows no worker. Checks that need a network are left out; all else is as configured.
    pub fn new(config: &Config, seed: u64, now: Instant) -> Self {
        let setup = Setup { queue: config.queue, heartbeat: config.lease.heartbeat, rng: StdRng::seed_from_u64(seed) };
        Self { desk: Desk::new(Registry::new(config.rules()), setup, now).with_names(config.names.clone()) }
    }

    /// `POST /register`.
    ///
    /// # Errors
    /// What the registry refuses.
    pub fn register(&mut self, registration: Registration, now: Instant) -> Result<Lease, Problem> {
        self.desk.change(now, |registry| registry.register(registration, Origin::Native, now))
    }

    /// `POST /heartbeat`.
    ///
    /// # Errors
    /// What the registry refuses.
    pub fn heartbeat(&mut self, beat: &Heartbeat, now: Instant) -> Result<HeartbeatReply, Problem> {
        check_beat(beat)?;
        self.desk.change(now, |registry| registry.heartbeat(beat, now))
    }

    /// `POST /drain`.
    ///
    /// # Errors
    /// When there is no such worker.
    pub fn drain(&mut self, leave: &Leave, now: Instant) -> Result<(), Problem> {
        self.desk.change(now, |registry| registry.drain(leave, now))
    }

    /// `POST /dispatch`; [`Self::take_answers`] has the answer, now or later, under the number of the question.
    pub fn ask(&mut self, number: u64, dispatch: Dispatch, now: Instant) {
        let (asker, patience) = question(dispatch);
        self.desk.ask(asker, patience, number, now);
    }

    /// The answers since the last call.
    pub fn take_answers(&mut self) -> Vec<(u64, Result<Grant, Problem>)> {
        self.desk.take_answers()
    }

    /// `POST /release` of one request.
    pub fn release(&mut self, gateway: GatewayId, release: &Release, now: Instant) {
        self.desk.release(Holder::Gateway(gateway), release, now);
    }

    /// `POST /renew`.
    pub fn renew(&mut self, gateway: GatewayId, now: Instant) {
        self.desk.change(now, |registry| registry.renew(gateway, now));
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Instant) {
        self.desk.tick(now);
    }

    /// The next moment at which time alone changes something for those who wait.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        self.desk.next_tick(now)
    }

    /// Every worker, by id, as `GET /fleet` shows it.
    pub fn workers(&self, now: Instant) -> Vec<WorkerStatus> {
        self.desk.registry().workers(now)
    }

    /// Requests that wait for room.
    pub fn waiting(&self) -> usize {
        self.desk.waiting()
    }
}
