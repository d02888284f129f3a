//! One worker as the registry knows it.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use muster_shared::control::{Capabilities, Grant, Heartbeat, ModelLoad, Registration, Resources, WorkerState};
use muster_shared::id::{TicketId, WorkerId};
use muster_shared::problem::{Kind, Problem};
use muster_shared::topology::Totals;
use muster_shared::transport::Transport;

use super::breaker::{Breaker, Circuit};
use super::changes::{Cause, Told};
use super::load::{Foreign, Missing, Offer};
use super::peers::Peering;
use super::pool::Standing;
use super::pressure::Pressure;
use crate::config::{LeaseConfig, PressureConfig};
use crate::dispatch::Candidate;

/// Weight of the newest response in the moving average of their times.
const NEWEST: f64 = 0.1;

/// Through which interface a worker registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Our own.
    Native,
    /// FastChat's.
    FastChat {
        /// Whether it sends heartbeats; without, its lease never ends.
        beats: bool,
        /// Whether it takes images.
        multimodal: bool,
        /// Requests it had when it registered.
        queue_length: u32,
    },
    /// None: it stands in the peers file, and its lease never ends.
    Static,
}

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) address: String,
    pub(crate) transport: Transport,
    pub(crate) origin: Origin,
    pub(crate) incarnation: u64,
    pub(crate) version: String,
    pub(crate) speed: f64,
    pub(crate) offers: Vec<Offer>,
    /// Its held tickets, oldest first.
    pub(super) tickets: BTreeSet<(Instant, TicketId)>,
    /// The moment for which the agenda has it.
    pub(super) due: Option<Instant>,
    /// Number of the last heartbeat, where they have numbers.
    sequence: Option<u64>,
    /// Requests it was given since its last heartbeat.
    pub(super) given: u32,
    /// Moving average of the time from a grant to its release, in milliseconds.
    pub(crate) response_ms: Option<f64>,
    /// Its machine in its own words.
    pub(crate) resources: Option<Resources>,
    /// Tokens per second of all its requests, in its own words.
    pub(crate) tokens_per_second: Option<f64>,
    /// Time to its first token in milliseconds, in its own words.
    pub(crate) ttft_ms: Option<f64>,
    /// Foreign requests whose model is not known: a FastChat worker tells one number for all its models.
    pub(crate) unattributed: Foreign,
    /// Tickets that a FastChat worker's beats do not know, whatever their models.
    pub(crate) missing: Missing,
    /// Its load in its own words.
    reported: Reported,
    pub(crate) breaker: Breaker,
    /// What presses on its machine.
    pub(crate) pressure: Pressure,
    /// It said that it has no room; believed until then.
    pub(crate) full_until: Option<Instant>,
    pub(crate) draining: bool,
    /// It drains since it stops, and nobody can have it go on.
    pub(super) stopping: bool,
    /// How it was when it was last looked at.
    pub(super) told: Told,
    /// Why it may be in another state now; taken with the next look.
    pub(super) cause: Option<Cause>,
    /// What has ended on it.
    pub(super) totals: Totals,
    /// Where it is, as somebody has written down.
    pub(crate) site: Option<String>,
    /// What its machine has, as somebody has written down.
    pub(crate) declared: Option<Capabilities>,
    /// What its machine has: in its own words, else as written down.
    pub(crate) capabilities: Option<Capabilities>,
    /// What is known of a static peer besides.
    pub(super) peering: Option<Box<Peering>>,
    /// Set when it was found gone, or left.
    pub(crate) gone_since: Option<Instant>,
    /// Length of its lease; `None`: it never ends.
    lease: Option<Duration>,
    renewed: Instant,
}

impl Worker {
    /// A worker that has just registered.
    pub(crate) fn new(registration: Registration, origin: Origin, lease: Option<Duration>, now: Instant) -> Self {
        let mut worker = Self {
            id: registration.id,
            address: registration.address,
            transport: registration.transport,
            origin,
            incarnation: registration.incarnation,
            version: registration.version,
            speed: registration.speed,
            offers: registration.models.into_iter().map(Offer::new).collect(),
            tickets: BTreeSet::new(),
            due: None,
            sequence: None,
            given: 0,
            response_ms: None,
            resources: None,
            tokens_per_second: None,
            ttft_ms: None,
            unattributed: Foreign::default(),
            missing: Missing::default(),
            reported: Reported::default(),
            breaker: Breaker::new(),
            pressure: Pressure::default(),
            full_until: None,
            draining: false,
            stopping: false,
            told: Told::nothing(now),
            cause: None,
            totals: Totals::default(),
            site: None,
            declared: None,
            capabilities: registration.capabilities,
            peering: None,
            gone_since: None,
            lease,
            renewed: now,
        };
        if let Origin::FastChat { queue_length, .. } = origin {
            worker.unattributed = Foreign::told(queue_length);
            worker.reported = Reported::Total(queue_length);
        }
        worker
    }

    /// Takes over the load and the doubts of `old`, the same process before it registered again.
    pub(crate) fn carry_over(&mut self, old: &Self) {
        for offer in &mut self.offers {
            if let Some(old) = old.offers.iter().find(|old| old.card.name == offer.card.name) {
                offer.carry_over(old);
            }
        }
        self.reported.clone_from(&old.reported);
        self.unattributed = old.unattributed;
        self.breaker = old.breaker.clone();
        self.breaker.beat();
        self.draining = old.draining;
        self.stopping = old.stopping;
        self.sequence = old.sequence;
        self.given = old.given;
        self.response_ms = old.response_ms;
        self.resources = old.resources;
        self.pressure = old.pressure;
        self.tokens_per_second = old.tokens_per_second;
        self.ttft_ms = old.ttft_ms;
    }

    /// Forgets the doubts about a process that is no more; its tickets must end, too.
    pub(super) fn start_anew(&mut self) {
        self.breaker = Breaker::new();
        self.pressure = Pressure::default();
        self.draining = false;
        self.stopping = false;
        self.full_until = None;
        self.response_ms = None;
        self.sequence = None;
    }

    /// Takes a heartbeat's number.
    ///
    /// # Errors
    /// [`Kind::Stale`] when a later one has come before.
    pub(crate) fn take_sequence(&mut self, sequence: Option<u64>) -> Result<(), Problem> {
        if let (Some(number), Some(last)) = (sequence, self.sequence)
            && number <= last
        {
            let message =
                format!("heartbeat {number} of worker `{}` comes after {last}: what it tells is past", self.id);
            return Err(Problem::new(Kind::Stale, message).with_param("sequence"));
        }
        self.sequence = sequence.or(self.sequence);
        Ok(())
    }

    /// Takes what a heartbeat tells besides the load.
    pub(crate) fn take_measures(&mut self, beat: &Heartbeat, pressure: &PressureConfig) {
        if let Some(speed) = beat.speed.filter(|speed| speed.is_finite() && *speed > 0.0) {
            self.speed = speed;
        }
        self.resources = beat.resources;
        let was_paused = self.pressure.is_paused();
        self.pressure.take(beat.resources.as_ref(), pressure);
        match self.pressure.reason() {
            Some(reason) if !was_paused => tracing::warn!(worker = %self.id, reason, "a worker is paused"),
            None if was_paused => tracing::info!(worker = %self.id, "a worker is paused no more"),
            _ => {}
        }
        self.tokens_per_second = beat.tokens_per_second;
        self.ttft_ms = beat.ttft_ms;
    }

    /// Takes the time of a request that succeeded.
    pub(crate) fn take_response(&mut self, took: Duration) {
        let took = took.as_secs_f64() * 1000.0;
        self.response_ms = Some(self.response_ms.map_or(took, |usual| usual + NEWEST * (took - usual)));
    }

    /// Forgets what held until a moment that has passed.
    pub(crate) fn forget_past(&mut self, now: Instant) {
        self.full_until = self.full_until.filter(|&until| until > now);
    }

    /// Age at which its anonymous tickets lapse. A heartbeat ends them where there are any; a static peer is heard only when
    /// it is probed, and would look full until then.
    pub(crate) fn anonymous_age(&self, rules: &LeaseConfig) -> Duration {
        match self.origin {
            Origin::Static => rules.heartbeat,
            Origin::Native | Origin::FastChat { .. } => rules.fastchat_expiration,
        }
    }

    /// The next moment after `now` at which time alone changes how it stands. `age`: that at which an anonymous ticket
    /// lapses.
    pub(crate) fn next_change(&self, age: Duration, now: Instant) -> Option<Instant> {
        if self.gone_since.is_some() {
            return None;
        }
        let anonymous = self.offers.iter().filter_map(|offer| offer.anonymous_lapses_at(age)).min();
        let changes = [self.lease_end(), self.breaker.reopens_at(), self.full_until, anonymous];
        changes.into_iter().flatten().filter(|&at| at > now).min()
    }

    /// How it stands to requests, whatever the model.
    pub(super) fn about(&self, now: Instant) -> About {
        let is_unproven = self.is_unproven();
        let is_open = match self.breaker.circuit(now) {
            _ if is_unproven => false,
            Circuit::Closed => true,
            // One request at a time decides, and those sent before the failure count too.
            Circuit::HalfOpen => self.tickets() == 0,
            Circuit::Open => false,
        };
        let live = self.is_live(now);
        let open = live && (is_unproven || self.breaker.circuit(now) == Circuit::Open);
        About {
            live,
            // One whose circuit is open serves nobody, so it keeps nobody from those that are merely paused.
            spared: open || live && self.pressure.is_paused(),
            open,
            has_room: is_open && self.full_until.is_none_or(|until| until <= now),
            candidate: Candidate {
                speed: self.speed,
                load: self.load(),
                // Of one that never beats, all would be new for ever.
                given: if self.lease.is_some() { self.given } else { 0 },
                resources: self.resources.unwrap_or_default(),
                response_ms: self.response_ms,
                ..Candidate::IDLE
            },
        }
    }

    /// Takes a sign of life from the worker itself.
    pub(crate) fn renew(&mut self, now: Instant) {
        self.renewed = self.renewed.max(now);
        self.given = 0;
        self.full_until = None;
        self.breaker.beat();
    }

    /// Takes the load that is told as one number for all models. Gives how many of the `settled` tickets it proves lost.
    pub(crate) fn take_total(&mut self, queue_length: u32, settled: u32) -> u32 {
        let vouched = self.offers.iter_mut().map(Offer::end_anonymous).sum();
        let excess = queue_length.saturating_sub(self.tickets());
        self.unattributed.beat(excess, vouched);
        self.report_total(queue_length);
        self.missing.beat(queue_length, settled)
    }

    /// Lets its lease go on by so long, though no sign of life came.
    pub(crate) fn excuse_silence(&mut self, silence: Duration) {
        self.renewed += silence;
    }

    /// Takes the load of a heartbeat, where it tells one. Says how many of the `settled` tickets, by model, it proves
    /// lost.
    pub(crate) fn take_load(
        &mut self,
        load: Option<&[ModelLoad]>,
        settled: &HashMap<String, u32>,
    ) -> Vec<(String, u32)> {
        self.reported = load.map(|load| Reported::ByModel(load.to_vec())).unwrap_or_default();
        let Some(load) = load else {
            self.offers.iter_mut().for_each(Offer::beat_untold);
            return Vec::new();
        };
        let beats = self.offers.iter_mut().map(|offer| {
            let settled = settled.get(&offer.card.name).copied().unwrap_or(0);
            let lost = offer.beat(reported(load, &offer.card.name), settled);
            (offer.card.name.clone(), lost)
        });
        beats.filter(|&(_, lost)| lost > 0).collect()
    }

    /// Whether it gets requests.
    pub(crate) fn state(&self, now: Instant) -> WorkerState {
        if self.gone_at(now).is_some() {
            return WorkerState::Gone;
        }
        if self.draining || self.is_removed() {
            return WorkerState::Draining;
        }
        if self.down_reason().is_some() {
            return WorkerState::Down;
        }
        match self.breaker.circuit(now) {
            _ if self.is_unproven() => WorkerState::Open,
            Circuit::Open => WorkerState::Open,
            // Half open or not: one that is paused and doubtful gets one request at a time, should it get any.
            _ if self.pressure.is_paused() => WorkerState::Paused,
            Circuit::Closed => WorkerState::Ready,
            Circuit::HalfOpen => WorkerState::Suspect,
        }
    }

    /// Since when it is gone.
    pub(crate) fn gone_at(&self, now: Instant) -> Option<Instant> {
        self.gone_since.or_else(|| self.lease_end().filter(|&end| end <= now))
    }

    /// When its lease ends.
    pub(crate) fn lease_end(&self) -> Option<Instant> {
        self.lease.map(|lease| self.renewed + lease)
    }

    /// Whether it would take a request for its models, now or when it has room.
    pub(crate) fn is_live(&self, now: Instant) -> bool {
        !matches!(self.state(now), WorkerState::Draining | WorkerState::Down | WorkerState::Gone)
    }

    /// Its offer of a model.
    pub(crate) fn offer(&self, model: &str) -> Option<&Offer> {
        self.offers.iter().find(|offer| offer.card.name == model)
    }

    /// Its offer of a model, to count upon.
    pub(crate) fn offer_mut(&mut self, model: &str) -> Option<&mut Offer> {
        self.offers.iter_mut().find(|offer| offer.card.name == model)
    }

    /// Live tickets of all models.
    pub(crate) fn tickets(&self) -> u32 {
        self.offers.iter().map(Offer::tickets).sum()
    }

    /// Live tickets and foreign requests of all models.
    pub(crate) fn load(&self) -> u32 {
        let offers: u32 = self.offers.iter().map(Offer::load).fold(0, u32::saturating_add);
        offers.saturating_add(self.unattributed.count())
    }

    /// Notes the load that a FastChat worker tells as one number.
    pub(crate) fn report_total(&mut self, queue_length: u32) {
        self.reported = Reported::Total(queue_length);
    }

    /// Its load in its own words, to be shown: one number is that of all its models together.
    pub(crate) fn reported(&self) -> Vec<ModelLoad> {
        match &self.reported {
            Reported::ByModel(load) => load.clone(),
            Reported::Total(0) => Vec::new(),
            &Reported::Total(running) => {
                let models: Vec<_> = self.offers.iter().map(|offer| offer.card.name.as_str()).collect();
                vec![ModelLoad { model: models.join(", "), running, waiting: 0 }]
            }
        }
    }

    /// Its load by model, where it tells that.
    pub(crate) fn reported_by_model(&self) -> &[ModelLoad] {
        match &self.reported {
            Reported::ByModel(load) => load,
            Reported::Total(_) => &[],
        }
    }

    /// Requests it had in its own words.
    pub(crate) fn reported_total(&self) -> u64 {
        match &self.reported {
            Reported::ByModel(load) => load.iter().map(|load| u64::from(load.running) + u64::from(load.waiting)).sum(),
            &Reported::Total(running) => running.into(),
        }
    }

    /// A grant of this worker.
    pub(crate) fn grant(&self, ticket: TicketId) -> Grant {
        Grant { ticket, worker: self.id.clone(), address: self.address.clone(), transport: self.transport, model: None }
    }
}

/// What a worker last told of its load.
#[derive(Debug, Clone)]
enum Reported {
    /// That of each of its models; of none, where it tells nothing.
    ByModel(Vec<ModelLoad>),
    /// One number for all its models, as FastChat's workers do. It comes with every beat and may be of thousands of
    /// models, so it is put in words only when somebody looks.
    Total(u32),
}

impl Default for Reported {
    fn default() -> Self {
        Self::ByModel(Vec::new())
    }
}

/// How a worker stands to requests, before it is asked for which model.
#[derive(Debug, Clone, Copy)]
pub(super) struct About {
    live: bool,
    spared: bool,
    open: bool,
    /// Whether it takes a request of a model that is not full.
    has_room: bool,
    candidate: Candidate,
}

impl About {
    /// How it stands to requests for a model that it offers.
    pub(super) fn standing(&self, offer: &Offer) -> Standing {
        let is_candidate = self.live && self.has_room && !offer.is_full();
        let candidate = is_candidate.then(|| self.candidate(offer));
        Standing { live: self.live, paused: self.spared, open: self.open, candidate }
    }

    /// What policies see of it, room or not.
    pub(super) fn candidate(&self, offer: &Offer) -> Candidate {
        let capacity = offer.card.capacity.map(|capacity| capacity.total());
        Candidate { capacity, turn: offer.turn, ..self.candidate }
    }
}

/// Requests of one model in a heartbeat.
fn reported(load: &[ModelLoad], model: &str) -> u32 {
    load.iter()
        .filter(|load| load.model == model)
        .fold(0, |sum, load| sum.saturating_add(load.running).saturating_add(load.waiting))
}
