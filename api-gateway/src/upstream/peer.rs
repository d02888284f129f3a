//! The workers that requests go to, each with what this gateway has in flight there and its open connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;

use super::wire::{Dial, Pool};

/// One worker.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: WorkerId,
    /// Base URL, without a trailing slash.
    pub(crate) address: String,
    pub(crate) transport: Transport,
    /// Connections for what is sent over plain HTTP.
    pub(crate) pool: Pool,
    in_flight: AtomicUsize,
}

impl Peer {
    /// A worker without requests.
    pub(crate) fn new(id: WorkerId, address: String, transport: Transport, dial: impl Into<Dial>) -> Self {
        let pool = Pool::new(&address, dial);
        Self { id, address, transport, pool, in_flight: AtomicUsize::new(0) }
    }

    /// Requests of this gateway that run there.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request.
    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of a request.
    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Every worker that was named lately.
#[derive(Debug)]
pub(crate) struct Peers {
    known: RwLock<HashMap<WorkerId, Arc<Peer>>>,
    dial: Dial,
}

impl Peers {
    /// No workers.
    pub(crate) fn new(dial: impl Into<Dial>) -> Self {
        Self { known: RwLock::default(), dial: dial.into() }
    }

    /// The worker of that name; a new one where it is not known, or known under another address.
    pub(crate) fn get(&self, id: &WorkerId, address: &str, transport: Transport) -> Arc<Peer> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if let Some(peer) = known.filter(|peer| peer.address == address && peer.transport == transport) {
            return peer;
        }
        let peer = Arc::new(Peer::new(id.clone(), address.to_owned(), transport, self.dial.clone()));
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), Arc::clone(&peer));
        peer
    }

    /// Forgets those that are not among `named` and have no requests, and connections that nobody has used for long.
    pub(crate) fn tidy(&self, named: impl Fn(&WorkerId) -> bool) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|id, peer| named(id) || peer.in_flight() > 0);
        known.values().for_each(|peer| peer.pool.tidy());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_worker_is_known_until_it_is_neither_named_nor_busy() {
        let peers = Peers::new(Duration::from_secs(1));
        let id = WorkerId::new("w");
        let first = peers.get(&id, "http://127.0.0.1:1", Transport::Http);
        assert!(Arc::ptr_eq(&first, &peers.get(&id, "http://127.0.0.1:1", Transport::Http)));
        first.begin();
        peers.tidy(|_| false);
        assert!(Arc::ptr_eq(&first, &peers.get(&id, "http://127.0.0.1:1", Transport::Http)), "it is busy");
        first.end();
        peers.tidy(|_| true);
        assert!(Arc::ptr_eq(&first, &peers.get(&id, "http://127.0.0.1:1", Transport::Http)), "it is named");
        peers.tidy(|_| false);
        assert!(!Arc::ptr_eq(&first, &peers.get(&id, "http://127.0.0.1:1", Transport::Http)));
    }

    #[test]
    fn a_worker_that_moved_is_another() {
        let peers = Peers::new(Duration::from_secs(1));
        let id = WorkerId::new("w");
        let first = peers.get(&id, "http://127.0.0.1:1", Transport::Http);
        let second = peers.get(&id, "http://127.0.0.1:2", Transport::Http);
        assert!(!Arc::ptr_eq(&first, &second));
        assert_eq!(peers.get(&id, "http://127.0.0.1:2", Transport::OpenAi).transport, Transport::OpenAi);
    }
}
