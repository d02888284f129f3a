//! A quick hash for tickets' ids, which are random already.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};

use muster_shared::id::TicketId;

use crate::dispatch::mix;

/// By ticket. The order in which it is walked depends on what was put in and nothing else.
pub(super) type ByTicket<T> = HashMap<TicketId, T, Quick>;
/// Tickets.
pub(super) type Tickets = HashSet<TicketId, Quick>;

/// Makes [`QuickHasher`]s.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Quick;

impl BuildHasher for Quick {
    type Hasher = QuickHasher;

    fn build_hasher(&self) -> QuickHasher {
        QuickHasher(0)
    }
}

/// Mixes eight bytes at a time.
pub(super) struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut eight = [0; 8];
            eight[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(eight));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0 ^ number);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
