//! Makes one picture of what was seen. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use muster_shared::control::{Source, WorkerState};
use muster_shared::id::{Epoch, GatewayId};
use muster_shared::link::Process;
use muster_shared::topology::{
    Change, ControllerNode, GatewayNode, Link, LinkKind, ModelNode, Node, PeersFile, Site, Topology, WorkerNode,
};

/// The controller's id, unless a worker has that name.
pub(super) const CONTROLLER: &str = "controller";
/// Letters of a process's id that its gateway's name has: the last ones, for the first are the time of its start.
const LETTERS: usize = 8;
/// Longest words of a gateway about itself, in characters.
const WORDS: usize = 256;
/// Warnings of workers that are told one by one; of more, only the number is.
const WARNINGS: usize = 20;

/// What was seen of the desk.
#[derive(Debug)]
pub(super) struct Seen {
    /// Each with whether it beats, by id.
    pub(super) workers: Vec<(WorkerNode, bool)>,
    pub(super) models: Vec<ModelNode>,
    pub(super) changes: Vec<Change>,
    /// Tickets of each gateway.
    pub(super) held: HashMap<GatewayId, u32>,
}

impl Seen {
    /// The processes behind the links, each once, by id.
    pub(super) fn gateways_of(&self, links: Vec<(GatewayId, Process)>, site: &str) -> Vec<GatewayNode> {
        let mut nodes: BTreeMap<GatewayId, GatewayNode> = BTreeMap::new();
        for (gateway, process) in links {
            let node = nodes.entry(process.id).or_insert_with(|| GatewayNode {
                id: name(&process),
                site: site.to_owned(),
                address: process.address.chars().take(WORDS).collect(),
                version: process.version.chars().take(WORDS).collect(),
                links: 0,
                tickets: 0,
            });
            node.links += 1;
            node.tickets += self.held.get(&gateway).copied().unwrap_or(0);
        }
        nodes.into_values().collect()
    }
}

fn name(process: &Process) -> String {
    let id = process.id.to_string();
    format!("gateway-{}", &id[id.len().saturating_sub(LETTERS)..])
}

/// Everything but moment and history.
pub(super) fn picture(
    epoch: Epoch,
    mut controller: ControllerNode,
    mut gateways: Vec<GatewayNode>,
    seen: Seen,
    peers: Option<PeersFile>,
) -> Topology {
    let mut taken: HashSet<String> = seen.workers.iter().map(|(worker, _)| worker.id.clone()).collect();
    let own = std::iter::once(&mut controller.id).chain(gateways.iter_mut().map(|gateway| &mut gateway.id));
    own.for_each(|id| set_apart(id, &mut taken));
    gateways.sort_by(|one, other| one.id.cmp(&other.id));

    let dispatch = gateways.iter().map(|gateway| link(&gateway.id, &controller.id, LinkKind::Dispatch));
    let to_workers = seen.workers.iter().filter_map(|(worker, beats)| worker_link(worker, *beats, &controller.id));
    let links = dispatch.chain(to_workers).collect();
    let warnings = warnings(&seen.workers, peers.as_ref());
    let workers = seen.workers.into_iter().map(|(worker, _)| Node::Worker(Box::new(worker)));
    let nodes = std::iter::once(Node::Controller(controller));
    let nodes: Vec<Node> = nodes.chain(gateways.into_iter().map(Node::Gateway)).chain(workers).collect();
    Topology {
        at_ms: 0,
        epoch,
        sites: sites(&nodes),
        nodes,
        links,
        models: seen.models,
        changes: seen.changes,
        history: Vec::new(),
        peers,
        warnings,
    }
}

/// A worker may have any name, that of the controller too.
fn set_apart(id: &mut String, taken: &mut HashSet<String>) {
    while !taken.insert(id.clone()) {
        id.push('\'');
    }
}

fn link(from: &str, to: &str, kind: LinkKind) -> Link {
    Link { from: from.to_owned(), to: to.to_owned(), kind }
}

/// How the controller knows that a worker lives, if it does.
fn worker_link(worker: &WorkerNode, beats: bool, controller: &str) -> Option<Link> {
    match worker.source {
        Source::Static => Some(link(controller, &worker.id, LinkKind::Probe)),
        Source::Registered if beats && worker.state != WorkerState::Gone => {
            Some(link(&worker.id, controller, LinkKind::Heartbeat))
        }
        Source::Registered => None,
    }
}

fn sites(nodes: &[Node]) -> Vec<Site> {
    let mut sites: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for node in nodes {
        sites.entry(node.site()).or_default().push(node.id().to_owned());
    }
    sites.into_iter().map(|(name, nodes)| Site { name: name.to_owned(), nodes }).collect()
}

fn warnings(workers: &[(WorkerNode, bool)], peers: Option<&PeersFile>) -> Vec<String> {
    let file = peers.and_then(|file| {
        let error = file.error.as_ref()?;
        Some(format!("{} is not in force, but what was there before: {error}", file.path))
    });
    let takes =
        |worker: &WorkerNode| matches!(worker.state, WorkerState::Ready | WorkerState::Suspect | WorkerState::Paused);
    let nobody = !workers.is_empty() && !workers.iter().any(|(worker, _)| takes(worker));
    let nobody = nobody.then(|| format!("no worker takes requests ({} known)", workers.len()));
    let theirs = || {
        let of = |worker: &'_ WorkerNode| -> Vec<String> {
            worker.warnings.iter().map(|warning| format!("{}: {warning}", worker.id)).collect()
        };
        workers.iter().flat_map(move |(worker, _)| of(worker))
    };
    let more = theirs().skip(WARNINGS).count();
    let more = (more > 0).then(|| format!("{more} more warnings of workers"));
    nobody.into_iter().chain(file).chain(theirs().take(WARNINGS)).chain(more).collect()
}
