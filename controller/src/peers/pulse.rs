//! When a peer is probed, and what follows from its answers. Pure: moments and random numbers come in.
//!
//! A peer that answers is asked again after the interval, or a little less. One probe that fails is followed by others at
//! once, so that a lost packet takes no peer out and a dead peer is known to be dead within the interval. Who is down must
//! answer twice in a row; who has just been written down, once.
//!
//! A probe of one that hangs takes long, and only so many run at once. Those that hang must not keep others waiting, so
//! probes have lanes, each with room of its own: hundreds of dead peers leave the time in which the death of a live one is
//! seen as it is.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use muster_shared::id::WorkerId;
use rand::{Rng, RngExt as _};

use super::Peer;

/// Failures in a row after which a peer is down.
const FAILURES: u32 = 3;
/// Answers in a row after which a peer that was down is up.
const ANSWERS: u32 = 2;
/// Part of the interval after which a peer that answers is asked again: the rest is for the failures that make it down.
const REST: std::ops::RangeInclusive<f64> = 0.8..=0.88;
/// Longest pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// The same as a part of the interval, where that is less.
const RETRIES: u32 = 20;
/// By how much each such pause is longer than the last.
const GROWTH: f64 = 1.2;
/// Time over which the first probes of many peers are spread, for each of them.
const SPREAD: Duration = Duration::from_millis(5);

/// Probes of one lane made at the same time.
pub(crate) const AT_ONCE: usize = 64;
/// How many lanes there are.
const LANES: usize = 4;

/// Which probes share their room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Of those that are up, and have failed a probe or a request.
    Doubtful,
    /// Of the others that are up.
    Up,
    /// The first of each.
    New,
    /// Of those that have failed, and are not up.
    Down,
}

/// What changes for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It gets requests from now on.
    Up,
    /// It gets none.
    Down,
}

/// How a peer has answered so far.
#[derive(Debug, Clone, Copy, Default)]
struct Pulse {
    /// Whether it is up; not known before its first turn.
    up: Option<bool>,
    /// Failures since it last answered.
    failures: u32,
    /// Answers since it last failed.
    answers: u32,
}

impl Pulse {
    fn take(&mut self, answered: bool) -> Option<Turn> {
        if answered {
            (self.failures, self.answers) = (0, self.answers.saturating_add(1));
        } else {
            (self.failures, self.answers) = (self.failures.saturating_add(1), 0);
        }
        let wanted = if self.up.is_none() { 1 } else { ANSWERS };
        let turn = match self.up {
            None | Some(false) if self.answers >= wanted => Turn::Up,
            None | Some(true) if self.failures >= FAILURES => Turn::Down,
            _ => return None,
        };
        self.up = Some(turn == Turn::Up);
        Some(turn)
    }

    /// The lane of the next probe.
    fn lane(self) -> Lane {
        match (self.up, self.failures, self.answers) {
            (Some(true), 1.., _) => Lane::Doubtful,
            (Some(true), ..) | (Some(false), 0, 1..) => Lane::Up, // it is up, or may be back
            (None, 0, _) => Lane::New,
            _ => Lane::Down,
        }
    }

    /// Time to the next probe.
    fn pause(self, interval: Duration, rng: &mut dyn Rng) -> Duration {
        match (self.up, self.failures, self.answers) {
            (Some(false), 0, 1..) => Duration::ZERO, // it may be back
            (None | Some(true), failures @ 1.., _) => {
                retry(interval).mul_f64(GROWTH.powi(failures.min(FAILURES).cast_signed() - 1))
            }
            _ => interval.mul_f64(rng.random_range(REST)),
        }
    }
}

/// Pause after a first failure, and least time between two probes that requests ask for.
fn retry(interval: Duration) -> Duration {
    (interval / RETRIES).min(RETRY)
}

#[derive(Debug)]
struct Entry {
    peer: Peer,
    pulse: Pulse,
    /// Differs from that of another peer of this name before or after.
    number: u64,
    /// When it will be probed, and in which lane; `None`: a probe runs.
    due: Option<(Instant, Lane)>,
    /// When the last probe ended.
    last: Option<Instant>,
}

impl Entry {
    /// Whether the same is to be probed.
    fn is_at(&self, peer: &Peer) -> bool {
        self.peer.address == peer.address && self.peer.transport == peer.transport
    }
}

/// A probe to be made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Probe {
    pub(crate) peer: Peer,
    /// To be given back with the answer.
    pub(crate) number: u64,
    /// Where it takes room until then.
    lane: Lane,
}

/// The probes of all peers.
#[derive(Debug)]
pub(crate) struct Rounds {
    interval: Duration,
    entries: HashMap<WorkerId, Entry>,
    due: [BTreeSet<(Instant, WorkerId)>; LANES],
    /// Probes that run.
    running: [usize; LANES],
    numbers: u64,
}

impl Rounds {
    /// Of nobody yet.
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, entries: HashMap::new(), due: Default::default(), running: [0; LANES], numbers: 0 }
    }

    /// These are the peers from now on. Who is where it was goes on as before; of others nothing is known.
    pub(crate) fn set(&mut self, peers: &[Peer], now: Instant, rng: &mut dyn Rng) {
        let spread = SPREAD.saturating_mul(u32::try_from(peers.len()).unwrap_or(u32::MAX)).min(self.interval);
        let mut old = std::mem::take(&mut self.entries);
        self.due.iter_mut().for_each(BTreeSet::clear);
        for peer in peers {
            let entry = match old.remove(&peer.id).filter(|entry| entry.is_at(peer)) {
                Some(entry) => Entry { peer: peer.clone(), ..entry },
                None => {
                    self.numbers += 1;
                    let due = Some((now + spread.mul_f64(rng.random_range(0.0..1.0)), Lane::New));
                    Entry { peer: peer.clone(), pulse: Pulse::default(), number: self.numbers, due, last: None }
                }
            };
            if let Some((due, lane)) = entry.due {
                self.due[lane as usize].insert((due, peer.id.clone()));
            }
            self.entries.insert(peer.id.clone(), entry);
        }
    }

    /// Whether that one is probed already.
    pub(crate) fn knows(&self, peer: &Peer) -> bool {
        self.entries.get(&peer.id).is_some_and(|entry| entry.is_at(peer))
    }

    /// The next probe that is due and for which there is room. It must be given back ([`Rounds::take`]).
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Probe> {
        let (due, lane) = self.first()?;
        if due > now {
            return None;
        }
        let (_, id) = self.due[lane].pop_first()?;
        let entry = self.entries.get_mut(&id)?;
        let (_, lane) = entry.due.take()?;
        self.running[lane as usize] += 1;
        Some(Probe { peer: entry.peer.clone(), number: entry.number, lane })
    }

    /// When the next probe is due for which there is room.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.first().map(|(due, _)| due)
    }

    fn first(&self) -> Option<(Instant, usize)> {
        let open = (0..LANES).filter(|&lane| self.running[lane] < AT_ONCE);
        open.filter_map(|lane| self.due[lane].first().map(|(due, _)| (*due, lane))).min()
    }

    /// Probes a peer at once: a request has failed there. Nothing new is learned of one that is down.
    pub(crate) fn hasten(&mut self, id: &WorkerId, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let Some((due, lane)) = entry.due.filter(|_| entry.pulse.up != Some(false)) else { return };
        let soon = entry.last.map_or(now, |last| (last + retry(self.interval)).max(now));
        if soon < due {
            let doubtful = if entry.pulse.up == Some(true) { Lane::Doubtful } else { lane };
            self.due[lane as usize].remove(&(due, id.clone()));
            self.due[doubtful as usize].insert((soon, id.clone()));
            entry.due = Some((soon, doubtful));
        }
    }

    /// Takes what a probe has shown; `None`: it was of a peer that is no more, or is another.
    pub(crate) fn take(
        &mut self,
        probe: &Probe,
        answered: bool,
        now: Instant,
        rng: &mut dyn Rng,
    ) -> Option<Option<Turn>> {
        let id = &probe.peer.id;
        self.running[probe.lane as usize] -= 1;
        let entry = self.entries.get_mut(id).filter(|entry| entry.number == probe.number)?;
        let turn = entry.pulse.take(answered);
        let (due, lane) = (now + entry.pulse.pause(self.interval, rng), entry.pulse.lane());
        (entry.due, entry.last) = (Some((due, lane)), Some(now));
        self.due[lane as usize].insert((due, id.clone()));
        Some(turn)
    }

    /// Whether a peer is known to be down.
    pub(crate) fn is_down(&self, id: &WorkerId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.pulse.up == Some(false))
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::transport::Transport;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn peer(id: &str) -> Peer {
        Peer {
            id: WorkerId::new(id),
            address: format!("http://{id}:1"),
            transport: Transport::Http,
            models: Vec::new(),
            site: None,
            speed: None,
            capabilities: None,
        }
    }

    struct World {
        rounds: Rounds,
        now: Instant,
        rng: StdRng,
    }

    impl World {
        fn of(peers: &[Peer]) -> Self {
            let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
            let mut rounds = Rounds::new(INTERVAL);
            rounds.set(peers, now, &mut rng);
            Self { rounds, now, rng }
        }

        /// Waits for the next probe, and lets it show that. Gives the wait in seconds and what follows.
        fn probe(&mut self, answers: bool) -> (f64, Option<Turn>) {
            let due = self.rounds.next().expect("a probe comes").max(self.now);
            let wait = due - self.now;
            self.now = due;
            let probe = self.rounds.pop_due(due).expect("it is due");
            let turn = self.rounds.take(&probe, answers, self.now, &mut self.rng).expect("it is known");
            (wait.as_secs_f64(), turn)
        }

        /// Lets all who are due answer. Gives their number.
        fn answer_all(&mut self) -> usize {
            let mut count = 0;
            while let Some(probe) = self.rounds.pop_due(self.now) {
                count += 1;
                self.rounds.take(&probe, true, self.now, &mut self.rng).expect("it is known");
            }
            count
        }
    }

    #[test]
    fn one_answer_is_enough_for_a_peer_that_was_never_seen() {
        let mut world = World::of(&[peer("a")]);
        let (wait, turn) = world.probe(true);
        assert!(wait < 0.1 && turn == Some(Turn::Up), "{wait}");
        let (wait, turn) = world.probe(true);
        assert!((24.0..=26.4).contains(&wait) && turn.is_none(), "{wait}");
    }

    #[test]
    fn a_dead_peer_is_down_within_the_interval_and_a_lost_packet_takes_none_out() {
        for interval in [INTERVAL, Duration::from_secs(1), Duration::from_millis(100)] {
            let mut world = World::of(&[peer("a")]);
            world.rounds.interval = interval;
            world.probe(true);
            world.probe(false);
            assert_eq!(world.probe(true).1, None, "it answers again");
            let died = world.now;
            let turns = [world.probe(false).1, world.probe(false).1, world.probe(false).1];
            assert_eq!(turns, [None, None, Some(Turn::Down)]);
            assert!(world.now - died <= interval, "{:?}", world.now - died);
        }
    }

    #[test]
    fn a_peer_that_was_down_answers_twice_in_a_row_before_it_is_up() {
        let mut world = World::of(&[peer("a")]);
        let turns = [false, false, false, true, false, true, true].map(|answers| world.probe(answers).1);
        let right = [None, None, Some(Turn::Down), None, None, None, Some(Turn::Up)];
        assert_eq!(turns, right);
        let mut world = World::of(&[peer("a")]);
        for _ in 0..3 {
            world.probe(false);
        }
        assert!((24.0..=26.4).contains(&world.probe(true).0), "one that is down is asked as seldom as one that is up");
        assert_eq!(world.probe(true), (0.0, Some(Turn::Up)), "and at once again when it answers");
    }

    #[test]
    fn a_request_that_failed_brings_the_next_probe_forward_but_no_flood_of_them() {
        let mut world = World::of(&[peer("a")]);
        world.probe(true);
        world.now += Duration::from_secs(5);
        world.rounds.hasten(&WorkerId::new("a"), world.now);
        world.rounds.hasten(&WorkerId::new("nobody"), world.now);
        assert_eq!(world.probe(true).0, 0.0);
        world.rounds.hasten(&WorkerId::new("a"), world.now);
        assert_eq!(world.probe(true).0, 1.0, "not at once after the last");
    }

    #[test]
    fn the_first_probes_of_many_are_spread() {
        let peers: Vec<_> = (0..2000).map(|number| peer(&number.to_string())).collect();
        let mut world = World::of(&peers);
        world.now += Duration::from_secs(1);
        let first = world.answer_all();
        assert!((50..400).contains(&first), "{first}");
        world.now += Duration::from_secs(9);
        assert_eq!(world.answer_all() + first, 2000);
    }

    #[test]
    fn hundreds_that_hang_keep_no_live_peer_waiting() {
        let dead: Vec<_> = (0..600).map(|number| peer(&format!("dead-{number}"))).collect();
        let mut peers = vec![peer("live")];
        let mut world = World::of(&peers);
        world.probe(true);
        peers.extend(dead);
        world.rounds.set(&peers, world.now, &mut world.rng);
        let (mut hanging, mut turn, began) = (Vec::new(), None, world.now);
        while turn.is_none() && world.now < began + 2 * INTERVAL {
            while let Some(probe) = world.rounds.pop_due(world.now) {
                hanging.push((world.now + Duration::from_secs(2), probe)); // they all hang, the live one as well by now
            }
            world.now += Duration::from_millis(10);
            for (_, probe) in hanging.extract_if(.., |(end, _)| *end <= world.now).collect::<Vec<_>>() {
                let is_live = probe.peer.id.as_str() == "live";
                let taken = world.rounds.take(&probe, false, world.now, &mut world.rng).expect("it is known");
                turn = taken.filter(|_| is_live).or(turn);
            }
            assert!(hanging.len() <= LANES * AT_ONCE, "{}", hanging.len());
        }
        // 0.88 of the interval, three probes of 2 s and the pauses between them.
        assert!(turn == Some(Turn::Down) && world.now - began < Duration::from_secs(36), "{:?}", world.now - began);
    }

    #[test]
    fn a_probe_of_a_peer_that_is_another_by_now_tells_nothing() {
        let mut world = World::of(&[peer("a")]);
        world.now += INTERVAL;
        let probe = world.rounds.pop_due(world.now).expect("it is due");
        let moved = Peer { address: "http://b:1".to_owned(), ..peer("a") };
        world.rounds.set(&[moved], world.now, &mut world.rng);
        assert_eq!(world.rounds.take(&probe, true, world.now, &mut world.rng), None);
        world.rounds.set(&[], world.now, &mut world.rng);
        assert_eq!((world.rounds.next(), world.rounds.pop_due(world.now)), (None, None));
    }

    proptest! {
        #[test]
        fn turns_alternate_and_every_peer_is_probed_again(answers in proptest::collection::vec(any::<bool>(), 1..200)) {
            let mut world = World::of(&[peer("a")]);
            let mut last = None;
            let (mut down, mut up) = (0, 0);
            for answer in answers {
                let (wait, turn) = world.probe(answer);
                prop_assert!(wait <= INTERVAL.as_secs_f64());
                (down, up) = if answer { (0, up + 1) } else { (down + 1, 0) };
                match turn {
                    Some(Turn::Up) => prop_assert!(up > u32::from(last.is_some())),
                    Some(Turn::Down) => prop_assert!(down >= 3),
                    None => {}
                }
                if turn.is_some() {
                    prop_assert_ne!(turn, last);
                    last = turn;
                }
            }
        }
    }
}
