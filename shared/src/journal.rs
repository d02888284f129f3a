//! Why a worker was chosen: what `GET /explain/ID` and `GET /journal` of the controller answer.
//!
//! `GET /explain/ID` answers with an [`Explanation`] of the request of that id, which is the `x-request-id` of its answer.
//! `GET /journal` is a text of JSON objects, each on a line of its own, a [`Line`] each: first a [`Header`], then a [`Pool`]
//! for each model, as its workers were before the oldest decision, then a [`Step`] for each decision, oldest first. How
//! things stood at a decision is its pool with the changes of all steps of that pool up to it.
//!
//! Numbers with a fraction are read back to the last bit, so that a decision made again is the same.

use serde::{Deserialize, Serialize};

use crate::control::{Outcome, Resources};
use crate::id::{GatewayId, WorkerId};
use crate::problem::Kind;
use crate::transport::Transport;

mod exact;

/// The form of a journal's lines; a journal of another form is not understood.
pub const FORM: u32 = 1;
/// What a journal is said to be over HTTP.
pub const CONTENT_TYPE: &str = "application/x-ndjson";

/// Why the workers of a request were chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The request's id.
    pub request: String,
    /// Decisions about it, oldest first: one, or more where it was tried again; the last eight, if more requests have
    /// that id.
    pub decisions: Vec<Explained>,
    /// Earlier ones, which are kept and left out here.
    #[serde(default)]
    pub earlier: u32,
    /// What the controller still knows.
    pub kept: Kept,
}

/// How far back a controller's journal goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Decisions that are kept.
    pub decisions: u64,
    /// How many are to be kept; fewer are where they would take too much memory.
    pub limit: u64,
    /// When the oldest was made, in milliseconds since 1970; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
}

/// A decision with what it was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// What was decided.
    pub decision: Decision,
    /// Why that worker: the rest of a sentence that begins with the worker. Absent: none was picked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Those that it was picked from, in no particular order.
    pub candidates: Vec<Weighed>,
    /// The other workers of the model.
    pub others: Vec<Other>,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Its number among all of this run of the controller, from 0.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The request's id; absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The gateway that asked; absent: a client of FastChat's interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayId>,
    /// Name of the key on whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The model whose workers were looked at.
    pub model: String,
    /// The name that was asked for, where it is another: an alias, or a model that this one stands in for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// No other model would have done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
    /// Protocols in which it could be said; empty: in any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transports: Vec<Transport>,
    /// Workers that had failed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<WorkerId>,
    /// Hash of the start of its prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u64>,
    /// How long it had waited for room.
    pub waited_ms: u64,
    /// The rule that picked; absent: the model had no workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What it came to.
    pub verdict: Verdict,
    /// How the request ended on the worker; absent: it runs, or nothing was ever told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// What a decision came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A worker was picked by the rule.
    Picked {
        /// Which.
        worker: WorkerId,
        /// Its place among those of its protocol.
        place: u32,
        /// Its protocol.
        transport: Transport,
        /// All of them are spared, so it was taken from these.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        spared: bool,
        /// Where the random numbers began from which the rule drew.
        seed: u64,
    },
    /// None had room. The address of this one was told to a client of FastChat's, who does not wait.
    Named {
        /// Which.
        worker: WorkerId,
    },
    /// Nobody was.
    Refused {
        /// Why, coarsely.
        kind: Kind,
        /// Why, in words.
        message: String,
    },
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Its gateway gave the ticket back.
    Released {
        /// With these words.
        outcome: Outcome,
        /// From the decision to then.
        took_ms: u64,
        /// Time from the request to the first token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttft_ms: Option<u64>,
        /// Tokens of the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokens: Option<u32>,
    },
    /// Its ticket was not given back: its worker or its gateway went away, or did not know it.
    Lapsed,
}

/// A candidate of a decision, as the rule saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Weighed {
    /// Its name.
    pub worker: WorkerId,
    /// Whether it was picked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub picked: bool,
    /// The number by which the rule compares.
    pub score: f64,
    /// The chance it had, from 0 to 1; absent: the rule does not go by chance alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// Requests that it had.
    pub load: u32,
    /// Requests that it takes at once; absent: no limit is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// Requests it was given since its last heartbeat.
    pub given: u32,
    /// Its speed relative to its peers.
    pub speed: f64,
    /// Time from a decision to the end of its request, usually.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_ms: Option<f64>,
    /// How much of its machine was in use.
    pub resources: Resources,
}

/// A worker of the model that was no candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    /// Its name.
    pub worker: WorkerId,
    /// Why not.
    pub why: Why,
}

/// Why a worker was no candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It had as much as it takes.
    Full,
    /// It had failed this request.
    Excluded,
    /// Its circuit was open after failures, or it was a peer that had not answered yet.
    Open,
    /// Its machine was short of something, while another's was not.
    Spared,
    /// It was draining, down or gone.
    Leaving,
    /// It speaks a protocol in which the request cannot be said.
    Protocol,
    /// It had room; the request was refused for another reason.
    Room,
}

/// A line of a journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first.
    Journal(Header),
    /// The workers of a model.
    Pool(Pool),
    /// A decision.
    Step(Box<Step>),
}

/// What a journal is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORM`].
    pub form: u32,
    /// The controller's version.
    pub version: String,
    /// When it was told, in milliseconds since 1970.
    pub at_ms: u64,
    /// How many pools follow.
    pub pools: u64,
    /// How many decisions follow.
    pub kept: Kept,
}

/// The workers of a model before the oldest decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Its number. A model that was gone and came back has another one.
    pub pool: u32,
    /// The model.
    pub model: String,
    /// The rule that picks.
    pub policy: String,
    /// Who sits where.
    pub seats: Vec<Change>,
}

/// A decision with what had changed since the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The pool that it looked at; absent: the model had no workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<u32>,
    /// What had changed in the pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// What was decided then.
    pub decision: Decision,
}

/// How the worker at a place stands from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Its protocol.
    pub transport: Transport,
    /// Its place among those of its protocol.
    pub place: u32,
    /// Nobody is there any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// It would take a request, now or when it has room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
    /// It is spared while another is not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spared: bool,
    /// Its circuit is open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
    /// What it has to do, where it has room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy: Option<Busy>,
    /// Its name and machine; absent: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
}

/// What a worker has to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Busy {
    /// Requests that it has.
    pub load: u32,
    /// Requests it was given since its last heartbeat.
    pub given: u32,
    /// Number of the last request for the model that it got.
    pub turn: u64,
    /// Time from a decision to the end of its request, usually.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact::option")]
    pub response_ms: Option<f64>,
}

/// A worker's name and machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The worker's name.
    pub worker: WorkerId,
    /// Its speed relative to its peers.
    #[serde(deserialize_with = "exact::number")]
    pub speed: f64,
    /// Requests that it takes at once; absent: no limit is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// How much of it is in use.
    #[serde(default, deserialize_with = "exact::resources")]
    pub resources: Resources,
}

#[cfg(test)]
mod tests;
