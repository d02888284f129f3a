//! What has changed between two pictures. Pure.

use std::collections::{HashMap, HashSet};

use muster_shared::topology::{Change, Node, Topology, Update};

use super::Snapshot;

/// What turns `before` into `after`.
pub(super) fn between(before: &Snapshot, after: &Snapshot) -> Update {
    let (old, new) = (&before.topology, &after.topology);
    let (nodes, gone) = nodes(old, new);
    let samples = usize::try_from(after.samples.saturating_sub(before.samples)).unwrap_or(usize::MAX);
    let known = new.history.len().saturating_sub(samples);
    Update {
        at_ms: new.at_ms,
        nodes,
        gone,
        links: changed(&old.links, &new.links),
        sites: changed(&old.sites, &new.sites),
        models: changed(&old.models, &new.models),
        changes: changes(old, new),
        history: new.history[known..].to_vec(),
        peers: if old.peers == new.peers { None } else { new.peers.clone() },
        warnings: changed(&old.warnings, &new.warnings),
    }
}

fn changed<T: PartialEq + Clone>(old: &Vec<T>, new: &Vec<T>) -> Option<Vec<T>> {
    (old != new).then(|| new.clone())
}

fn nodes(old: &Topology, new: &Topology) -> (Vec<Node>, Vec<String>) {
    let known: HashMap<&str, &Node> = old.nodes.iter().map(|node| (node.id(), node)).collect();
    let nodes = new.nodes.iter().filter(|node| known.get(node.id()) != Some(node)).cloned().collect();
    if old.nodes.iter().map(Node::id).eq(new.nodes.iter().map(Node::id)) {
        return (nodes, Vec::new());
    }
    let left: HashSet<&str> = new.nodes.iter().map(Node::id).collect();
    let gone = old.nodes.iter().map(Node::id).filter(|id| !left.contains(id)).map(str::to_owned).collect();
    (nodes, gone)
}

fn changes(old: &Topology, new: &Topology) -> Vec<Change> {
    let last = old.changes.first().map_or(0, |change| change.number);
    new.changes.iter().take_while(|change| change.number > last).cloned().collect()
}
