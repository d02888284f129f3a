//! The fleet as a picture: what `GET /topology` of the controller answers, and what `GET /events` streams.
//!
//! `GET /topology` answers with a [`Topology`]. `GET /events` is a stream of server-sent events: one `topology` with the
//! same at its beginning, and again should the controller's clock be set, then an `update` with an [`Update`] each second.
//! Times are in milliseconds; a moment is counted since 1970.

mod update;

use serde::{Deserialize, Serialize};

use crate::control::{Capabilities, ModelCard, ModelLoad, ModelStatus, Resources, Source, WorkerState};
use crate::id::Epoch;
use crate::transport::Transport;

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// When this was true.
    pub at_ms: u64,
    /// Which run of the controller tells it.
    pub epoch: Epoch,
    /// Where things are, by name.
    pub sites: Vec<Site>,
    /// Controller, gateways and workers; the first is the controller, the others are by kind and id.
    pub nodes: Vec<Node>,
    /// Who talks to whom.
    pub links: Vec<Link>,
    /// Every model that can be asked for, by name.
    pub models: Vec<ModelNode>,
    /// The last changes of workers' states, newest first.
    pub changes: Vec<Change>,
    /// The last minutes, one sample each second, oldest first.
    pub history: Vec<Sample>,
    /// The file of static peers, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeersFile>,
    /// What an operator should look at, in words.
    pub warnings: Vec<String>,
}

impl Topology {
    /// Changes that are told at most.
    pub const CHANGES: usize = 256;
    /// Samples that are told at most: five minutes.
    pub const HISTORY: usize = 300;
}

/// Machines that are near to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Ids of the nodes there.
    pub nodes: Vec<String>,
}

/// A process of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Node {
    /// The one that tells this.
    Controller(ControllerNode),
    /// One with a link to the controller.
    Gateway(GatewayNode),
    /// One that is registered, or written down in the peers file.
    Worker(Box<WorkerNode>),
}

impl Node {
    /// Unique among all nodes: a worker's is its name.
    pub fn id(&self) -> &str {
        match self {
            Self::Controller(node) => &node.id,
            Self::Gateway(node) => &node.id,
            Self::Worker(node) => &node.id,
        }
    }
}

/// The controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerNode {
    /// `controller`.
    pub id: String,
    /// Its site.
    pub site: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_ms: u64,
    /// Name of its dispatch policy.
    pub policy: String,
    /// Requests that wait in it for room.
    pub waiting: u32,
}

/// A gateway; its threads, each with a link of its own, are told as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayNode {
    /// `gateway-` and a few letters of its process's id.
    pub id: String,
    /// Its site.
    pub site: String,
    /// Base URL at which it listens, in its own words.
    pub address: String,
    /// Its version.
    pub version: String,
    /// Links it has open.
    pub links: u32,
    /// Requests in flight that came through it.
    pub tickets: u32,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerNode {
    /// Its name.
    pub id: String,
    /// Its site.
    pub site: String,
    /// Base URL at which gateways reach it.
    pub address: String,
    /// The protocol it speaks.
    pub transport: Transport,
    /// Where it is known from.
    pub source: Source,
    /// Whether it gets requests.
    pub state: WorkerState,
    /// When it came into this state.
    pub since_ms: u64,
    /// Why it is in this state, in words, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it serves.
    pub models: Vec<ModelCard>,
    /// Its version.
    pub version: String,
    /// Tokens per second for one request, stated or measured.
    pub speed: f64,
    /// Requests the controller has sent it that have not ended.
    pub tickets: u32,
    /// Its load in its own words, from its last heartbeat or probe.
    pub reported: Vec<ModelLoad>,
    /// How much of its machine is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// What its machine has: in its own words, else as written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Tokens per second of all its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Time to its first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Time it takes for a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_ms: Option<f64>,
    /// What has ended on it since the controller knows it.
    pub totals: Totals,
    /// What an operator should look at, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Counts that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests that have ended, however.
    pub requests: u64,
    /// Of these, those that the worker failed.
    pub failures: u64,
    /// Tokens of answers, where gateways told them.
    pub tokens: u64,
}

/// One node talks to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Id of the one that opened it.
    pub from: String,
    /// Id of the other.
    pub to: String,
    /// What it is for.
    pub kind: LinkKind,
}

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// A gateway asks the controller for workers.
    Dispatch,
    /// A worker tells the controller that it lives.
    Heartbeat,
    /// The controller asks a worker whether it lives: a static peer.
    Probe,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNode {
    /// As in the fleet.
    #[serde(flatten)]
    pub status: ModelStatus,
    /// Requests that wait for room.
    pub waiting: u32,
    /// Requests in flight, as far as the controller dispatched them.
    pub tickets: u32,
}

/// A worker came into another state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Grows by one with each change.
    pub number: u64,
    /// When.
    pub at_ms: u64,
    /// The worker's name.
    pub worker: String,
    /// How it was before; absent where it was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<WorkerState>,
    /// How it is since; absent where it was forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<WorkerState>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// The fleet in one second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Its end.
    pub at_ms: u64,
    /// Requests that ended in it.
    pub requests: u32,
    /// Of these, those that a worker failed.
    pub failures: u32,
    /// Tokens of answers that ended in it.
    pub tokens: u64,
    /// Median time to the first token of the requests that ended in it; absent: none told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Requests in flight at its end.
    pub tickets: u32,
    /// Requests that waited for room at its end.
    pub waiting: u32,
}

/// How the file of static peers stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersFile {
    /// Its path, as the controller was told it.
    pub path: String,
    /// When what is in force was read.
    pub loaded_ms: u64,
    /// Peers in force.
    pub peers: u32,
    /// Why what is there now is not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What `GET /events` streams.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Event {
    /// Everything: forget what was said before.
    Topology(Box<Topology>),
    /// What has changed since the event before it.
    Update(Box<Update>),
}

/// What has changed since the last event of a stream. What is absent, or empty, is as before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// When this was true.
    pub at_ms: u64,
    /// Nodes that are new or have changed, whole.
    pub nodes: Vec<Node>,
    /// Ids of nodes that are gone.
    pub gone: Vec<String>,
    /// All links, if any has come or gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<Vec<Link>>,
    /// All sites, if any node has come or gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<Vec<Site>>,
    /// All models, if any has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<ModelNode>>,
    /// New ones, newest first.
    pub changes: Vec<Change>,
    /// New ones, oldest first.
    pub history: Vec<Sample>,
    /// The file of static peers, if anything about it has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeersFile>,
    /// All warnings, if any has come or gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<String>>,
}
