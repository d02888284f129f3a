//! A ring of points for consistent hashing: each seat has many, and a prompt belongs to the seat whose point follows it.

use std::collections::BTreeMap;

use muster_shared::id::WorkerId;

use super::Seat;

/// Points of one worker: enough that shares differ by some percent only.
const POINTS: u64 = 64;

/// Seats by their points.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ring {
    points: BTreeMap<u64, Seat>,
}

impl Ring {
    /// Gives a worker's seat its points, which depend on nothing but the worker's name.
    pub(crate) fn add(&mut self, worker: &WorkerId, seat: Seat) {
        self.points.extend(points(worker).map(|point| (point, seat)));
    }

    /// Takes a worker's points away.
    pub(crate) fn remove(&mut self, worker: &WorkerId, seat: Seat) {
        for point in points(worker) {
            if self.points.get(&point) == Some(&seat) {
                self.points.remove(&point);
            }
        }
    }

    /// The seats from `hash` on, once around.
    pub(super) fn after(&self, hash: u64) -> impl Iterator<Item = Seat> {
        self.points.range(hash..).chain(self.points.range(..hash)).map(|(_, &seat)| seat)
    }
}

fn points(worker: &WorkerId) -> impl Iterator<Item = u64> {
    let name = hash(worker.as_str().as_bytes());
    (0..POINTS).map(move |number| mix(name.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
}

/// FNV-1a over 64 bits: a hash that is the same in every build.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finaliser of SplitMix64 (Steele et al. 2014): spreads near numbers over the ring.
pub(crate) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(place: u32) -> Seat {
        Seat { lane: 0, place }
    }

    #[test]
    fn a_worker_that_leaves_takes_only_what_was_its_own() {
        let names: Vec<_> = (0..10).map(|n| WorkerId::new(format!("http://w{n}"))).collect();
        let mut ring = Ring::default();
        names.iter().enumerate().for_each(|(n, name)| ring.add(name, seat(n as u32)));
        let owner = |ring: &Ring, prompt| ring.after(mix(prompt)).next().expect("there are points");
        let before: Vec<_> = (0..1000).map(|prompt| owner(&ring, prompt)).collect();
        ring.remove(&names[3], seat(3));
        for (prompt, &before) in before.iter().enumerate() {
            let after = owner(&ring, prompt as u64);
            assert_eq!(after == before, before != seat(3), "prompt {prompt}");
        }
        let most = (0..10).map(|n| before.iter().filter(|&&owner| owner == seat(n)).count()).max();
        assert!(most < Some(180), "shares are uneven: {most:?}");
    }
}
