//! What workers and gateways say to the controller.
//!
//! Every message is the JSON body of a `POST` to the path of the same name (`/register`, `/heartbeat`, `/drain`, `/resume`,
//! `/deregister`, `/dispatch`, `/release`, `/renew`); `GET /fleet` answers with a [`Fleet`]. An error is a
//! [`crate::problem::Problem`] with a 4xx or 5xx status. Durations are in milliseconds.

mod capabilities;
mod resources;

pub use capabilities::{Capabilities, Gpu};
pub use resources::Resources;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, GatewayId, TicketId, WorkerId};
use crate::transport::Transport;

/// What a model can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Text, token by token.
    Generate,
    /// One vector for each input.
    Embed,
    /// One vector for each input with few numbers that are not 0, each for a token of the vocabulary.
    SparseEmbed,
    /// How well texts answer a query.
    Rerank,
    /// Of which class a text is.
    Classify,
    /// The same where each class stands for something that a text may not hold, and a text may be of several.
    Moderate,
    /// Which parts of a text are names of something.
    Entities,
    /// Whatever the graph makes of tensors.
    Tensor,
}

impl ModelKind {
    /// Every one of them.
    pub const ALL: [Self; 8] = [
        Self::Generate,
        Self::Embed,
        Self::SparseEmbed,
        Self::Rerank,
        Self::Classify,
        Self::Moderate,
        Self::Entities,
        Self::Tensor,
    ];
}

/// How many requests for one model a worker takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Requests that run together.
    pub running: u32,
    /// Requests that may wait in the worker besides.
    pub waiting: u32,
}

impl Capacity {
    /// The most requests the controller may have in flight on the worker.
    pub fn total(self) -> u32 {
        self.running.saturating_add(self.waiting)
    }
}

/// One model as a worker offers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The name clients ask for.
    pub name: String,
    /// What it can be asked for; a FastChat worker does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ModelKind>,
    /// Longest prompt with its answer, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
    /// Requests in flight it takes; absent: no limit is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// What its answers depend on besides the request, as a hash of the model's files; two that are alike answer alike.
    /// Absent where a worker does not tell, or the files may change under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

impl ModelCard {
    /// A model of which only the name is known.
    pub fn bare(name: impl Into<String>) -> Self {
        Self { name: name.into(), kind: None, context_length: None, capacity: None, revision: None }
    }
}

/// `POST /register`: a worker offers its models. Answered with a [`Lease`].
///
/// A second registration of the same id replaces the first as a whole, if its incarnation is not older.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// The worker's name.
    pub id: WorkerId,
    /// Base URL at which gateways reach it, without a trailing slash.
    pub address: String,
    /// Grows whenever the worker process starts anew: milliseconds since 1970 at its start.
    pub incarnation: u64,
    /// The protocol it speaks.
    pub transport: Transport,
    /// What it serves.
    pub models: Vec<ModelCard>,
    /// Tokens per second it produces for one request, relative to its peers; above zero.
    #[serde(default = "default_speed")]
    pub speed: f64,
    /// The worker's version, for the status page.
    #[serde(default)]
    pub version: String,
    /// What its machine has, for the status page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
}

/// `GET /report` of a worker: what it would tell a controller, for one that asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// As if it registered now.
    pub registration: Registration,
    /// As if it beat now.
    pub heartbeat: Heartbeat,
}

fn default_speed() -> f64 {
    1.0
}

/// `GET /health` of a worker: it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `alive`.
    pub status: String,
    /// Who it is to its controller; absent while it has not registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Identity>,
}

/// One run of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The worker's name.
    pub id: WorkerId,
    /// That of its registration.
    pub incarnation: u64,
}

/// A worker's right to be chosen, until it ends or is renewed by a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Time from now to the end of the lease.
    pub lease_ms: u64,
    /// Time between two heartbeats that the controller wishes for.
    pub heartbeat_ms: u64,
}

/// Requests that a worker has of one model, from the controller's gateways and from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelLoad {
    /// The model's name.
    pub model: String,
    /// Requests that run.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
}

/// `POST /heartbeat`: a worker lives and tells its load. Answered with a [`HeartbeatReply`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The worker's name.
    pub id: WorkerId,
    /// Must be that of its registration; an older one is refused.
    pub incarnation: u64,
    /// One entry for each model with requests. Absent: the sender cannot know, and nothing follows from its silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Vec<ModelLoad>>,
    /// Measured tokens per second, where the worker has measured any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    /// Grows with each heartbeat of an incarnation; one that comes after a later one is refused, since what it tells is
    /// past. Absent: beats are taken in the order in which they come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// How much of its machine is in use. Absent: the sender cannot know, and nothing pauses the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Tokens per second of all its requests together, over the time since the last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Time from a request to its first token, in milliseconds; a moving average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
}

impl Heartbeat {
    /// One that says nothing but that the worker lives.
    pub fn bare(id: WorkerId, incarnation: u64) -> Self {
        Self {
            id,
            incarnation,
            load: None,
            speed: None,
            sequence: None,
            resources: None,
            tokens_per_second: None,
            ttft_ms: None,
        }
    }
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "lease", rename_all = "snake_case")]
pub enum HeartbeatReply {
    /// The lease goes on.
    Renewed(Renewal),
    /// The controller does not know the worker, having restarted perhaps: register again.
    Unknown,
}

/// A lease that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// From now on.
    #[serde(flatten)]
    pub lease: Lease,
    /// The worker's machine is short of memory: it shall refuse the requests that wait in it for want of room, so that
    /// others take them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shed: bool,
}

/// `POST /drain`, `POST /resume` and `POST /deregister`: the worker takes no more requests, takes them again, or is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// The worker's name.
    pub id: WorkerId,
    /// That of its registration; absent when an operator asks, who means whatever runs under that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
}

/// `POST /dispatch`: which worker shall answer? Answered with a [`Grant`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch {
    /// Who will hold the ticket.
    pub gateway: GatewayId,
    /// The request's id, by which the decision can be explained later (`GET /explain/ID`). Absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The model's name.
    pub model: String,
    /// No other model will do, neither one that the name stands for nor a fallback: an answer that this one has begun
    /// shall go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
    /// Hash of the start of the prompt, for policies that keep like with like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u64>,
    /// Higher goes first among the waiting requests of one key; 0 is usual.
    #[serde(default)]
    pub priority: i8,
    /// Longest wait for room; absent or 0: answer at once.
    #[serde(default)]
    pub wait_ms: u64,
    /// Time left until the answer is of no more use; a wait that would end later is refused at once. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// On whose behalf: the name of the client's API key. Keys share a full fleet fairly. Absent: nobody's in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Of the key among the other keys; higher goes first, 0 is usual.
    #[serde(default)]
    pub key_priority: i8,
    /// Workers that have already failed this request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<WorkerId>,
    /// Protocols in which it can be said; empty: in any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transports: Vec<Transport>,
    /// The span that it is a part of, as a W3C `traceparent`. Absent: it is not traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

impl Dispatch {
    /// One for any worker of the model, to be answered at once.
    pub fn new(gateway: GatewayId, model: impl Into<String>) -> Self {
        Self {
            gateway,
            request: None,
            model: model.into(),
            exact: false,
            affinity: None,
            priority: 0,
            wait_ms: 0,
            deadline_ms: None,
            key: None,
            key_priority: 0,
            exclude: Vec::new(),
            transports: Vec::new(),
            trace: None,
        }
    }
}

/// A request in flight, as its gateway tells of it to a controller that may not know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its ticket, of an earlier run of the controller or made by the gateway itself.
    pub ticket: TicketId,
    /// The worker that runs it.
    pub worker: WorkerId,
    /// The model's name, as the worker knows it.
    pub model: String,
    /// The key of its dispatch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// The answer to a dispatch: the request counts as in flight on the worker until the ticket is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// To be released when the request has ended.
    pub ticket: TicketId,
    /// The chosen worker.
    pub worker: WorkerId,
    /// Its base URL.
    pub address: String,
    /// The protocol it speaks.
    pub transport: Transport,
    /// The model to ask it for, where that is not the one that was asked for: an alias, or a fallback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// How a request ended on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It answered, be it with a refusal that was the client's fault.
    Done,
    /// The client went away first; says nothing about the worker.
    Cancelled,
    /// No connection could be made.
    Unreachable,
    /// It broke off, answered 5xx, or not in time.
    Failed,
    /// It had no room.
    Overloaded,
}

/// One ended request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// The ticket of its dispatch.
    pub ticket: TicketId,
    /// How it ended.
    pub outcome: Outcome,
    /// Time from the request to the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<u64>,
    /// Tokens it produced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
}

/// `POST /release`: requests that have ended, in one message. Answered with an empty object.
///
/// An unknown ticket is no error: its lease may have lapsed before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Releases {
    /// Who held the tickets.
    pub gateway: GatewayId,
    /// One entry for each.
    pub releases: Vec<Release>,
}

/// `POST /renew`: the gateway lives, and so do its tickets. Answered with a [`Fleet`].
///
/// Tickets of a gateway that is silent for one lease of a worker, or for 15 s if that is longer, lapse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Who holds the tickets.
    pub gateway: GatewayId,
}

/// How the controller sees a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Alive; gets requests.
    Ready,
    /// Alive but doubtful after a failure: gets one request at a time until one succeeds.
    Suspect,
    /// The circuit is open after failures: gets nothing until a pause has passed or a heartbeat comes.
    Open,
    /// Its machine is short of processors or memory: gets nothing while another worker of the model is not.
    Paused,
    /// Finishes what it runs and gets nothing.
    Draining,
    /// A static peer that does not answer its probes: gets nothing until it does.
    Down,
    /// Its lease ended, or it deregistered; kept for a while so that its models are known to have existed.
    Gone,
}

/// Where the controller's knowledge of a worker comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It registered itself, or was registered by hand.
    Registered,
    /// It stands in the controller's peers file.
    Static,
}

/// One worker in a [`Fleet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The worker's name.
    pub id: WorkerId,
    /// Its base URL.
    pub address: String,
    /// The protocol it speaks.
    pub transport: Transport,
    /// Where it is known from.
    pub source: Source,
    /// Whether it gets requests.
    pub state: WorkerState,
    /// What it serves.
    pub models: Vec<ModelCard>,
    /// Tokens per second, stated or measured.
    pub speed: f64,
    /// Requests the controller has sent it that have not ended.
    pub tickets: u32,
    /// Its load in its own words, from its last heartbeat.
    pub reported: Vec<ModelLoad>,
    /// Its machine in its own words, from its last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Why it is paused, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// Tokens per second of all its requests, from its last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Time to its first token in milliseconds, from its last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Time it takes for a request in milliseconds: a moving average of what the controller saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_ms: Option<f64>,
    /// Time to the end of its lease; absent for a worker that need not beat.
    pub lease_ms: Option<u64>,
    /// That of its registration.
    pub incarnation: u64,
    /// Its version.
    pub version: String,
}

/// One model in a [`Fleet`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// The model's name.
    pub name: String,
    /// What it can be asked for, where known.
    pub kind: Option<ModelKind>,
    /// Longest prompt with its answer, in tokens, where known.
    pub context_length: Option<u32>,
    /// Workers that would take a request for it now or when they have room.
    pub workers: u32,
    /// The models that it stands for, where it is an alias; a worker that serves two of them counts twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stands_for: Vec<String>,
    /// The models that take its requests while it has no room, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<String>,
    /// The rule that picks its worker, where it is not the fleet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

impl ModelStatus {
    /// One of which only the name is known, and that so many workers serve.
    pub fn bare(name: impl Into<String>, workers: u32) -> Self {
        Self {
            name: name.into(),
            kind: None,
            context_length: None,
            workers,
            stands_for: Vec::new(),
            fallbacks: Vec::new(),
            policy: None,
        }
    }
}

/// `GET /fleet`: the controller's view of everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// Which run of the controller this is.
    pub epoch: Epoch,
    /// The controller's version.
    pub version: String,
    /// Time since it started.
    pub uptime_ms: u64,
    /// Name of the dispatch policy.
    pub policy: String,
    /// Requests that wait for room.
    pub waiting: u32,
    /// Every worker it knows, by id.
    pub workers: Vec<WorkerStatus>,
    /// Every model that can be asked for, by name: those that live workers serve, aliases, and what fallbacks serve.
    pub models: Vec<ModelStatus>,
}
