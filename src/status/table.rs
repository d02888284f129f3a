//! The fleet as tables.

use muster_shared::control::{ModelKind, ModelStatus, Source, WorkerState};
use muster_shared::topology::{Change, ControllerNode, GatewayNode, ModelNode, Node, PeersFile, Topology, WorkerNode};
use muster_shared::transport::Transport;

use crate::text::{Room, aligned, counted, indented, shown, span};

/// Changes that are shown.
const CHANGES: usize = 5;

/// What one looks for comes first.
const HEAD: [&str; 13] = [
    "WORKER",
    "STATE",
    "TICKETS",
    "TOKENS/S",
    "TTFT",
    "CPU",
    "MEMORY",
    "SINCE",
    "SPEED",
    "SOURCE",
    "SITE",
    "TRANSPORT",
    "MODELS",
];
/// Columns that are shown where there is room for them.
const WIDE: [&str; 5] = ["SINCE", "SPEED", "SOURCE", "SITE", "TRANSPORT"];
/// Narrowest terminal with room for them.
const WIDE_FROM: usize = 120;

/// Everything.
pub(super) fn of(topology: &Topology, room: Room) -> String {
    let sections = [
        head(topology),
        workers(topology, room),
        reasons(topology),
        gateways(topology, room),
        if topology.models.is_empty() { String::new() } else { of_models(&topology.models, room) },
        changes(topology, room),
        peers(topology),
        warnings(topology),
    ];
    let sections: Vec<String> = sections.into_iter().filter(|section| !section.is_empty()).collect();
    sections.join("\n").lines().map(|line| format!("{}\n", room.line(line))).collect()
}

fn head(topology: &Topology) -> String {
    let controller = topology.nodes.iter().find_map(|node| match node {
        Node::Controller(controller) => Some(controller),
        _ => None,
    });
    let Some(ControllerNode { version, started_ms, policy, waiting, .. }) = controller else { return String::new() };
    let up = span(topology.at_ms.saturating_sub(*started_ms));
    format!("controller {} · up {up} · policy {} · {waiting} waiting\n", shown(version), shown(policy))
}

fn all_workers(topology: &Topology) -> impl Iterator<Item = &WorkerNode> {
    topology.nodes.iter().filter_map(|node| match node {
        Node::Worker(worker) => Some(&**worker),
        _ => None,
    })
}

fn workers(topology: &Topology, room: Room) -> String {
    if all_workers(topology).next().is_none() {
        return "no worker has registered\n".to_owned();
    }
    let has_peers = all_workers(topology).any(|worker| worker.source == Source::Static);
    let has_transports = all_workers(topology).any(|worker| worker.transport != Transport::Http);
    let is_narrow = matches!(room, Room::Columns(columns) if columns < WIDE_FROM);
    let tells = |column: &&str| match *column {
        "SOURCE" => has_peers,
        "SITE" => topology.sites.len() > 1,
        "TRANSPORT" => has_transports,
        _ => true,
    };
    let without = WIDE.into_iter().filter(|column| is_narrow || !tells(column)).collect();
    let columns = Columns { without, at_ms: topology.at_ms };
    let mut head = HEAD.map(str::to_owned);
    columns.leave_out(&mut head);
    let rows: Vec<_> = all_workers(topology).map(|worker| columns.row(worker)).collect();
    aligned(&[vec![head], rows].concat(), room)
}

/// Columns that only some fleets need.
struct Columns {
    /// Those that are left out.
    without: Vec<&'static str>,
    at_ms: u64,
}

impl Columns {
    fn row(&self, worker: &WorkerNode) -> [String; 13] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let percent = |share: Option<f64>| or_dash(share.map(|share| format!("{:.0}%", share * 100.0)));
        let resources = worker.resources.unwrap_or_default();
        let models: Vec<&str> = worker.models.iter().map(|model| model.name.as_str()).collect();
        let mut row = [
            worker.id.clone(),
            state(worker.state).to_owned(),
            worker.tickets.to_string(),
            or_dash(worker.tokens_per_second.map(|tokens| format!("{tokens:.1}"))),
            or_dash(worker.ttft_ms.map(|ms| format!("{ms:.0}ms"))),
            percent(resources.cpu),
            percent(resources.memory),
            span(self.at_ms.saturating_sub(worker.since_ms)),
            format!("{:.1}", worker.speed),
            source(worker.source).to_owned(),
            worker.site.clone(),
            worker.transport.to_string(),
            models.join(", "),
        ];
        self.leave_out(&mut row);
        row
    }

    /// An empty column is not shown.
    fn leave_out(&self, row: &mut [String; 13]) {
        for (_, cell) in HEAD.iter().zip(row).filter(|(head, _)| self.without.contains(head)) {
            cell.clear();
        }
    }
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Registered => "registered",
        Source::Static => "static",
    }
}

pub(super) fn state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Ready => "ready",
        WorkerState::Suspect => "suspect",
        WorkerState::Open => "open",
        WorkerState::Paused => "paused",
        WorkerState::Draining => "draining",
        WorkerState::Down => "down",
        WorkerState::Gone => "gone",
    }
}

/// Why workers are not ready.
fn reasons(topology: &Topology) -> String {
    let why = |worker: &WorkerNode| {
        let reason = worker.reason.as_ref().filter(|_| worker.state != WorkerState::Gone)?;
        Some(format!("{} is {}: {}\n", shown(&worker.id), state(worker.state), shown(reason)))
    };
    all_workers(topology).filter_map(why).collect()
}

fn gateways(topology: &Topology, room: Room) -> String {
    let row = |gateway: &GatewayNode| {
        let GatewayNode { id, address, version, links, tickets, .. } = gateway;
        [id.clone(), address.clone(), version.clone(), links.to_string(), tickets.to_string()]
    };
    let rows = topology.nodes.iter().filter_map(|node| match node {
        Node::Gateway(gateway) => Some(row(gateway)),
        _ => None,
    });
    let head = ["GATEWAY", "ADDRESS", "VERSION", "LINKS", "TICKETS"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    if rows.len() == 1 { String::new() } else { aligned(&rows, room) }
}

/// The models, and what stands behind their names.
pub(super) fn of_models(models: &[ModelNode], room: Room) -> String {
    if models.is_empty() {
        return "no model is served\n".to_owned();
    }
    let head = ["MODEL", "KIND", "CONTEXT", "WORKERS", "WAITING", "TICKETS", "BEHIND IT"].map(str::to_owned);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = models.iter().map(|ModelNode { status, waiting, tickets }| {
        [
            status.name.clone(),
            or_dash(status.kind.map(|it| kind(it).to_owned())),
            or_dash(status.context_length.map(|length| length.to_string())),
            status.workers.to_string(),
            waiting.to_string(),
            tickets.to_string(),
            behind(status),
        ]
    });
    let mut rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    if rows.iter().skip(1).all(|row| row[6].is_empty()) {
        rows[0][6].clear();
    }
    aligned(&rows, room)
}

/// What the configuration says of a model, if anything.
fn behind(model: &ModelStatus) -> String {
    let ModelStatus { stands_for, fallbacks, policy, .. } = model;
    let alias = (!stands_for.is_empty()).then(|| format!("stands for {}", stands_for.join(", ")));
    let others = (!fallbacks.is_empty()).then(|| format!("falls back to {}", fallbacks.join(", ")));
    let policy = policy.as_ref().map(|policy| format!("has the policy {policy}"));
    alias.into_iter().chain(others).chain(policy).collect::<Vec<_>>().join("; ")
}

fn kind(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::Generate => "generate",
        ModelKind::Embed => "embed",
        ModelKind::SparseEmbed => "sparse_embed",
        ModelKind::Rerank => "rerank",
        ModelKind::Classify => "classify",
        ModelKind::Moderate => "moderate",
        ModelKind::Entities => "entities",
        ModelKind::Tensor => "tensor",
    }
}

fn changes(topology: &Topology, room: Room) -> String {
    let words = |known: Option<WorkerState>| known.map_or("unknown", state);
    let row = |change: &Change| {
        let ago = format!("{} ago", span(topology.at_ms.saturating_sub(change.at_ms)));
        let step = format!("{} → {}", words(change.from), words(change.to));
        [ago, change.worker.clone(), step, change.reason.clone()]
    };
    let head = ["CHANGED", "WORKER", "STATE", "WHY"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(topology.changes.iter().take(CHANGES).map(row)).collect();
    if rows.len() == 1 { String::new() } else { aligned(&rows, room) }
}

fn peers(topology: &Topology) -> String {
    let Some(PeersFile { path, loaded_ms, peers, error }) = &topology.peers else { return String::new() };
    let ago = span(topology.at_ms.saturating_sub(*loaded_ms));
    let peers = counted(*peers, "peer");
    let line = format!("peers file {}: {peers}, read {ago} ago\n", shown(path));
    match error {
        // Each mistake has its line of the file below it.
        Some(error) => format!("{line}what is there now is not in force:\n{}", indented(&lines(error))),
        None => line,
    }
}

/// What is to be looked at, but for what is told elsewhere.
fn warnings(topology: &Topology) -> String {
    let wrong = topology.peers.as_ref().and_then(|peers| peers.error.as_ref());
    let warnings = topology.warnings.iter().filter(|warning| wrong.is_none_or(|wrong| !warning.ends_with(wrong)));
    warnings.map(|warning| format!("warning: {}\n", shown(warning))).collect()
}

fn lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", shown(line))).collect()
}
