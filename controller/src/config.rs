//! What a controller can be told at its start.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use muster_shared::secret::Secret;
use muster_shared::tls::Tls;

use crate::dispatch::{self, Policies, Policy};
use crate::names::Names;
use crate::peers::PeersConfig;
use crate::registry::Rules;

/// How a controller behaves. The defaults serve a fleet on one machine or one network.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long a worker or a gateway may be silent.
    pub lease: LeaseConfig,
    /// The rule that picks a worker.
    pub policy: PolicyName,
    /// What stands behind the names that clients ask for, and the policies of single models.
    pub names: Names,
    /// How many requests may wait for room, and how long.
    pub queue: QueueConfig,
    /// When a failing worker is spared.
    pub breaker: BreakerConfig,
    /// When a worker is spared whose machine is short of something.
    pub pressure: PressureConfig,
    /// Decisions that can be explained later, the last ones; 0: none.
    pub journal: usize,
    /// Workers that are written down; `None`: nobody is.
    pub peers: Option<PeersConfig>,
    /// The fleet token that every caller must show; `None` lets everyone in.
    pub token: Option<Secret>,
    /// What it shows of itself, and whom it trusts.
    pub tls: Tls,
    /// The key of operators, who drain and resume workers; `None`: whoever has the fleet token may.
    pub admin_key: Option<Secret>,
    /// Name of the place where everything is that does not say otherwise.
    pub site: String,
    /// Longest body of a request, in bytes.
    pub body_limit: usize,
    /// Time that running requests have to end when the controller stops.
    pub drain: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease: LeaseConfig::default(),
            policy: PolicyName::default(),
            names: Names::default(),
            queue: QueueConfig::default(),
            breaker: BreakerConfig::default(),
            pressure: PressureConfig::default(),
            journal: 10_000,
            peers: None,
            token: None,
            tls: Tls::default(),
            admin_key: None,
            site: "local".to_owned(),
            body_limit: 1 << 20,
            drain: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// What the registry goes by.
    pub(crate) fn rules(&self) -> Rules {
        let own = self.names.policies().map(|(model, policy)| (model.to_owned(), policy.policy()));
        let policies = Policies::new(self.policy.policy(), own.collect());
        Rules { lease: self.lease, breaker: self.breaker, pressure: self.pressure, policies, journal: self.journal }
    }
}

/// How long a worker or a gateway may be silent before its lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseConfig {
    /// Time between two heartbeats; above zero.
    pub heartbeat: Duration,
    /// Heartbeats that may be missed: a lease lasts this many times `heartbeat`.
    pub missed_beats: NonZeroU32,
    /// Lease of a worker registered through FastChat's API, whose workers beat every 45 s.
    pub fastchat_expiration: Duration,
}

/// Shortest time after which the tickets of a silent gateway lapse: gateways renew them at a pace of their own, every
/// two seconds unless told otherwise, however fast workers beat.
const GATEWAY_TERM: Duration = Duration::from_secs(15);

impl LeaseConfig {
    /// Length of a lease.
    pub fn term(&self) -> Duration {
        self.heartbeat.saturating_mul(self.missed_beats.get())
    }

    /// Time after which the tickets of a silent gateway lapse.
    pub fn gateway_term(&self) -> Duration {
        self.term().max(GATEWAY_TERM)
    }
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(5),
            missed_beats: NonZeroU32::MIN.saturating_add(2),
            fastchat_expiration: Duration::from_secs(90),
        }
    }
}

/// How many requests may wait for room, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Requests that may wait at once, over all models; up to [`QueueConfig::MOST`].
    pub limit: usize,
    /// Those that may wait for one model; `None`: as many as may wait at all.
    pub per_model: Option<usize>,
    /// Those that may wait on behalf of one API key, over all models; `None`: as many as may wait at all. Requests that
    /// come without a key are bounded by the others alone.
    pub per_key: Option<usize>,
    /// Longest wait, whatever a request asks for.
    pub max_wait: Duration,
}

impl QueueConfig {
    /// The most that `limit` may be: more answers than there may then be at one moment would find no room on a gateway's
    /// link.
    pub const MOST: usize = 60_000;
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { limit: 1024, per_model: None, per_key: None, max_wait: Duration::from_secs(30) }
    }
}

/// When a failing worker is spared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row that open the circuit. A refused connection opens it at once.
    pub failures: NonZeroU32,
    /// Time for which an open circuit gets nothing; doubles with each opening up to 30 s, until a request succeeds.
    pub pause: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures: NonZeroU32::MIN.saturating_add(2), pause: Duration::from_secs(2) }
    }
}

/// When a worker is spared whose machine is short of something. `None`: never for that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PressureConfig {
    /// What others than the worker's own models take of its processors.
    pub cpu: Option<Mark>,
    /// Memory in use. A worker above hands over the requests that wait in it, besides.
    pub memory: Option<Mark>,
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self { cpu: Some(Mark { pause: 0.85, resume: 0.75 }), memory: Some(Mark { pause: 0.90, resume: 0.85 }) }
    }
}

/// Two heights of one mark, as fractions: a worker is spared when it rises above the first, until it falls below the
/// second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    pause: f64,
    resume: f64,
}

impl Mark {
    /// A mark that can be crossed both ways.
    ///
    /// # Errors
    /// [`BadMark`] unless both lie between 0 and 1 and `resume` below `pause`.
    pub fn new(pause: f64, resume: f64) -> Result<Self, BadMark> {
        let is_fine = pause > 0.0 && pause <= 1.0 && resume > 0.0 && resume < pause;
        if is_fine { Ok(Self { pause, resume }) } else { Err(BadMark { pause, resume }) }
    }

    /// Above this a worker is spared.
    pub fn pause(self) -> f64 {
        self.pause
    }

    /// Below this it is spared no more.
    pub fn resume(self) -> f64 {
        self.resume
    }
}

/// A mark that could not be crossed both ways.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "a pause from {pause} on cannot end below {resume}; both must be above 0 and at most 1, and the end below the beginning"
)]
pub struct BadMark {
    /// Where the pause would begin.
    pub pause: f64,
    /// Where it would end.
    pub resume: f64,
}

/// The name of a dispatch policy that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyName(&'static str);

impl PolicyName {
    /// Every policy there is.
    pub fn all() -> impl Iterator<Item = Self> {
        dispatch::names().map(Self)
    }

    /// The name as it is listed.
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// The policy of this name.
    pub(crate) fn policy(self) -> &'static dyn Policy {
        dispatch::by_name(self.0).expect("a policy name is made from the table only")
    }
}

impl Default for PolicyName {
    fn default() -> Self {
        Self(dispatch::ShortestQueue.name())
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A policy name that is none of the legal ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown dispatch policy `{given}`; expected one of: {}", dispatch::names().collect::<Vec<_>>().join(", "))]
pub struct UnknownPolicy {
    /// The name as it was given.
    pub given: String,
}

impl FromStr for PolicyName {
    type Err = UnknownPolicy;

    /// Reads a policy's name in any case, its words joined by `_` or `-`.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let wanted = given.replace('-', "_");
        Self::all()
            .find(|name| name.0.eq_ignore_ascii_case(&wanted))
            .ok_or_else(|| UnknownPolicy { given: given.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_name_is_read_in_any_case() {
        assert_eq!("Shortest_Queue".parse(), Ok(PolicyName::default()));
        assert_eq!("shortest-queue".parse(), Ok(PolicyName::default()));
        assert_eq!("LOTTERY".parse::<PolicyName>().expect("it exists").to_string(), "lottery");
    }

    #[test]
    fn an_unknown_policy_is_refused_with_the_legal_names() {
        let error = "coin".parse::<PolicyName>().expect_err("no such policy");
        assert_eq!(
            error.to_string(),
            "unknown dispatch policy `coin`; expected one of: lottery, shortest_queue, round_robin, power_of_two, \
             prefix_affinity, resource_score, load_score, latency_feedback, latency_feedback_linear"
        );
    }

    #[test]
    fn a_pause_ends_below_where_it_begins() {
        Mark::new(0.9, 0.85).expect("it can be crossed both ways");
        Mark::new(1.0, 0.001).expect("it can be crossed both ways");
        let bad = [
            (0.85, 0.85),
            (0.8, 0.9),
            (0.0, 0.0),
            (1.1, 0.5),
            (0.5, 0.0),
            (0.5, -1.0),
            (f64::NAN, 0.5),
            (0.5, f64::NAN),
        ];
        for (pause, resume) in bad {
            let error = Mark::new(pause, resume).expect_err("no such mark").to_string();
            assert!(error.contains(&pause.to_string()) && error.contains(&resume.to_string()), "{error}");
        }
        let PressureConfig { cpu, memory } = PressureConfig::default();
        for mark in [cpu, memory].into_iter().flatten() {
            assert_eq!(Mark::new(mark.pause, mark.resume), Ok(mark));
        }
    }

    #[test]
    fn fast_heartbeats_do_not_take_a_gateways_tickets() {
        let fast = LeaseConfig { heartbeat: Duration::from_millis(200), ..LeaseConfig::default() };
        assert_eq!((fast.term(), fast.gateway_term()), (Duration::from_millis(600), GATEWAY_TERM));
        let slow = LeaseConfig { heartbeat: Duration::from_secs(10), ..LeaseConfig::default() };
        assert_eq!(slow.gateway_term(), slow.term());
    }

    #[test]
    fn a_lease_lasts_three_beats_unless_told_otherwise() {
        assert_eq!(LeaseConfig::default().term(), Duration::from_secs(15));
    }
}
