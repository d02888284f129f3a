//! Taking updates.

use std::collections::HashSet;

use super::{Node, Topology, Update};

impl Node {
    /// The site it is at.
    pub fn site(&self) -> &str {
        match self {
            Self::Controller(node) => &node.site,
            Self::Gateway(node) => &node.site,
            Self::Worker(node) => &node.site,
        }
    }

    /// Where it stands among nodes: by kind, then by id.
    fn order(&self) -> (u8, &str) {
        let kind = match self {
            Self::Controller(_) => 0,
            Self::Gateway(_) => 1,
            Self::Worker(_) => 2,
        };
        (kind, self.id())
    }
}

impl Topology {
    /// Takes what has changed: what comes out is what `GET /topology` would have answered.
    pub fn apply(&mut self, update: Update) {
        let Update { at_ms, nodes, gone, links, sites, models, changes, history, peers, warnings } = update;
        self.at_ms = at_ms;
        if !nodes.is_empty() || !gone.is_empty() {
            let stale: HashSet<&str> = nodes.iter().map(Node::id).chain(gone.iter().map(String::as_str)).collect();
            self.nodes.retain(|node| !stale.contains(node.id()));
            self.nodes.extend(nodes);
            self.nodes.sort_by(|one, other| one.order().cmp(&other.order()));
        }
        self.links = links.unwrap_or_else(|| std::mem::take(&mut self.links));
        self.sites = sites.unwrap_or_else(|| std::mem::take(&mut self.sites));
        self.models = models.unwrap_or_else(|| std::mem::take(&mut self.models));
        self.warnings = warnings.unwrap_or_else(|| std::mem::take(&mut self.warnings));
        self.peers = peers.or_else(|| self.peers.take());
        self.changes.splice(..0, changes);
        self.changes.truncate(Self::CHANGES);
        self.history.extend(history);
        let old = self.history.len().saturating_sub(Self::HISTORY);
        self.history.drain(..old);
    }
}
