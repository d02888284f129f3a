//! The workers of one model, those that may be chosen kept in order.
//!
//! What the registry knows of a worker is told here whenever it changes ([`Pool::update`]); a choice looks at nobody.

use std::collections::HashMap;
use std::sync::Arc;

use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;
use rand::Rng;
use slab::Slab;

use super::{Lack, Slot};
use crate::dispatch::{Candidate, Candidates, LANES, Policies, Policy, PolicyRequest, Ranking, Ring, Seat};

/// On whose behalf a request is made; `None`: nobody's in particular.
pub(crate) type Key = Option<Arc<str>>;

/// How a worker stands to requests for one model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Standing {
    /// Whether it would take a request, now or when it has room.
    pub(super) live: bool,
    /// Whether it is spared while others are not.
    pub(super) paused: bool,
    /// What policies see of it, where it has room now.
    pub(super) candidate: Option<Candidate>,
}

/// The workers of one model.
#[derive(Debug)]
pub(super) struct Pool {
    /// The model's name.
    pub(super) model: Arc<str>,
    policy: &'static dyn Policy,
    lanes: [Lane; LANES],
    ring: Option<Ring>,
    members: u32,
    /// Number of the last request that was given.
    pub(super) turn: u64,
    /// Held tickets of each key that has any.
    keys: HashMap<Key, u32>,
    /// Whether it is among those whose change nobody has looked at yet.
    changed: bool,
}

/// Workers that speak one protocol.
#[derive(Debug, Default)]
struct Lane {
    members: Slab<Member>,
    ready: Side,
    paused: Side,
}

#[derive(Debug, Default)]
struct Side {
    live: u32,
    ranking: Ranking,
}

#[derive(Debug)]
struct Member {
    slot: Slot,
    standing: Standing,
}

/// What a choice came to.
pub(super) enum Choice {
    /// That worker.
    Slot(Slot),
    /// Someone would take it, and has no room now.
    NoRoom,
    /// Nobody would take it.
    Nobody,
}

impl Pool {
    fn new(model: Arc<str>, policy: &'static dyn Policy) -> Self {
        let ring = policy.wants_ring().then(Ring::default);
        let lanes = std::array::from_fn(|_| Lane::default());
        Self { model, policy, lanes, ring, members: 0, turn: 0, keys: HashMap::new(), changed: false }
    }

    /// Every worker of the model, gone ones too.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.lanes.iter().flat_map(|lane| &lane.members).map(|(_, member)| member.slot)
    }

    /// Held tickets of a key.
    pub(super) fn held_by(&self, key: &Key) -> u32 {
        self.keys.get(key).copied().unwrap_or(0)
    }

    /// Held tickets of all keys.
    pub(super) fn held(&self) -> u32 {
        self.keys.values().sum()
    }

    /// Counts a ticket of a key.
    pub(super) fn hold(&mut self, key: &Key) {
        *self.keys.entry(key.clone()).or_default() += 1;
    }

    /// Counts it no more.
    pub(super) fn let_go(&mut self, key: &Key) {
        if let Some(held) = self.keys.get_mut(key) {
            *held -= 1;
            if *held == 0 {
                self.keys.remove(key);
            }
        }
    }

    /// Whether someone is alive who is not spared.
    pub(super) fn has_ready(&self) -> bool {
        self.lanes.iter().any(|lane| lane.ready.live > 0)
    }

    fn join(&mut self, slot: Slot, worker: &WorkerId, transport: Transport) -> Seat {
        let lane = lane_of(transport);
        let place = self.lanes[lane].members.insert(Member { slot, standing: Standing::default() });
        let seat = Seat { lane: lane as u8, place: place as u32 };
        if let Some(ring) = &mut self.ring {
            ring.add(worker, seat);
        }
        self.members += 1;
        seat
    }

    fn leave(&mut self, worker: &WorkerId, seat: Seat) {
        self.update(seat, Standing::default());
        self.lanes[usize::from(seat.lane)].members.remove(seat.place as usize);
        if let Some(ring) = &mut self.ring {
            ring.remove(worker, seat);
        }
        self.members -= 1;
    }

    /// Takes note of how the worker at a seat stands now. Says whether someone who waits may have to hear of it.
    fn update(&mut self, seat: Seat, standing: Standing) -> bool {
        let place = seat.place as usize;
        let Lane { members, ready, paused } = &mut self.lanes[usize::from(seat.lane)];
        let before = std::mem::replace(&mut members[place].standing, standing);
        if before == standing {
            return false;
        }
        let sides = [ready, paused];
        let (from, to) = (usize::from(before.paused), usize::from(standing.paused));
        sides[from].live -= u32::from(before.live);
        sides[to].live += u32::from(standing.live);
        if from != to {
            sides[from].ranking.set(place, None);
        }
        let keyed = standing.candidate.map(|candidate| (candidate, self.policy.key(&candidate)));
        sides[to].ranking.set(place, keyed);
        let room = standing.candidate.is_some() && before.candidate.is_none();
        room || before.live != standing.live || before.paused != standing.paused
    }

    /// Picks one of those that have room, without `exclude`, that speak one of `transports` (none: any).
    ///
    /// Those that are paused are spared while another one is alive, though it may be full; when all are paused, pauses
    /// are ignored: to refuse everyone helps nobody.
    pub(super) fn choose(
        &mut self,
        exclude: &[Seat],
        transports: &[Transport],
        affinity: Option<u64>,
        rng: &mut dyn Rng,
    ) -> Choice {
        let wanted = wanted(transports);
        let Some(is_paused) = self.side_for(wanted, exclude) else { return Choice::Nobody };
        match self.pick(wanted, is_paused, exclude, affinity, rng) {
            Some(seat) => Choice::Slot(self.member(seat).slot),
            None => Choice::NoRoom,
        }
    }

    /// What a choice would find none of; `None`: it would have someone to pick from.
    pub(super) fn lack(&self, exclude: &[Seat], transports: &[Transport]) -> Option<Lack> {
        let wanted = wanted(transports);
        let Some(is_paused) = self.side_for(wanted, exclude) else { return Some(Lack::Worker) };
        let lanes = self.lanes.iter().zip(wanted).filter(|(_, wanted)| *wanted);
        let room: u32 = lanes.map(|(lane, _)| lane.ranking(is_paused).count()).sum();
        let is_excluded = |seat: &&Seat| {
            let standing = self.member(**seat).standing;
            wanted[usize::from(seat.lane)] && standing.paused == is_paused && standing.candidate.is_some()
        };
        (room as usize == exclude.iter().filter(is_excluded).count()).then_some(Lack::Room)
    }

    /// Whether those that are paused must do (`true`), or must not; `None`: nobody would take the request.
    fn side_for(&self, wanted: [bool; LANES], exclude: &[Seat]) -> Option<bool> {
        let mut live = [0, 0];
        for (lane, _) in self.lanes.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
            live[0] += lane.ready.live;
            live[1] += lane.paused.live;
        }
        for seat in exclude {
            let standing = self.member(*seat).standing;
            if standing.live && wanted[usize::from(seat.lane)] {
                live[usize::from(standing.paused)] -= 1;
            }
        }
        match live {
            [0, 0] => None,
            [0, _] => Some(true),
            _ => Some(false),
        }
    }

    fn pick(
        &mut self,
        wanted: [bool; LANES],
        is_paused: bool,
        exclude: &[Seat],
        affinity: Option<u64>,
        rng: &mut dyn Rng,
    ) -> Option<Seat> {
        for &seat in exclude {
            self.side(seat, is_paused).ranking.set(seat.place as usize, None);
        }
        let lanes = std::array::from_fn(|lane| wanted[lane].then(|| self.lanes[lane].ranking(is_paused)));
        let candidates = Candidates::new(lanes, self.ring.as_ref());
        let request = PolicyRequest { model: &self.model, affinity };
        let picked = self.policy.pick(&candidates, &request, rng);
        for &seat in exclude {
            let standing = self.member(seat).standing;
            if standing.paused == is_paused {
                let keyed = standing.candidate.map(|candidate| (candidate, self.policy.key(&candidate)));
                self.side(seat, is_paused).ranking.set(seat.place as usize, keyed);
            }
        }
        picked
    }

    /// Whether one that speaks one of `transports` (none: any) and is not among `exclude` would take a request, and
    /// whether one has room for it now.
    pub(super) fn prospects(&self, exclude: &[Seat], transports: &[Transport]) -> (bool, bool) {
        let wanted = |lane: usize| transports.is_empty() || transports.iter().any(|&speaks| lane_of(speaks) == lane);
        let sides = self.lanes.iter().enumerate().filter(|(lane, _)| wanted(*lane));
        let sides = sides.flat_map(|(_, lane)| [&lane.ready, &lane.paused]);
        let (mut live, mut room) =
            sides.fold((0, 0), |(live, room), side| (live + side.live, room + side.ranking.count()));
        for seat in exclude.iter().filter(|seat| wanted(seat.lane.into())) {
            let standing = self.member(*seat).standing;
            live -= u32::from(standing.live);
            room -= u32::from(standing.candidate.is_some());
        }
        (live > 0, room > 0)
    }

    /// Picks one of those given, be it full, as if it had room.
    pub(super) fn pick_of(
        &self,
        those: &[(Slot, Candidate)],
        affinity: Option<u64>,
        rng: &mut dyn Rng,
    ) -> Option<Slot> {
        let mut ranking = Ranking::default();
        for (place, (_, candidate)) in those.iter().enumerate() {
            ranking.set(place, Some((*candidate, self.policy.key(candidate))));
        }
        let mut lanes = [None; LANES];
        lanes[0] = Some(&ranking);
        let request = PolicyRequest { model: &self.model, affinity };
        // Without the ring, whose seats are others: a policy that wants it does as without an affinity.
        let seat = self.policy.pick(&Candidates::new(lanes, None), &request, rng)?;
        Some(those[seat.place as usize].0)
    }

    /// What it was last told of the worker at a seat.
    #[cfg(test)]
    pub(super) fn standing(&self, seat: Seat) -> Standing {
        self.member(seat).standing
    }

    fn member(&self, seat: Seat) -> &Member {
        &self.lanes[usize::from(seat.lane)].members[seat.place as usize]
    }

    fn side(&mut self, seat: Seat, is_paused: bool) -> &mut Side {
        let lane = &mut self.lanes[usize::from(seat.lane)];
        if is_paused { &mut lane.paused } else { &mut lane.ready }
    }
}

impl Lane {
    fn ranking(&self, is_paused: bool) -> &Ranking {
        if is_paused { &self.paused.ranking } else { &self.ready.ranking }
    }
}

/// The lanes of those that speak one of `transports` (none: any).
fn wanted(transports: &[Transport]) -> [bool; LANES] {
    std::array::from_fn(|lane| transports.is_empty() || transports.iter().any(|&transport| lane_of(transport) == lane))
}

fn lane_of(transport: Transport) -> usize {
    match transport {
        Transport::Http => 0,
        Transport::Grpc => 1,
        Transport::FastChat => 2,
        Transport::OpenAi => 3,
    }
}

/// The pools of all models.
#[derive(Debug)]
pub(super) struct Pools {
    policies: Policies,
    by_model: HashMap<Arc<str>, Pool>,
    /// Models for which someone who waits may have to hear of a change.
    changed: Vec<Arc<str>>,
}

impl Pools {
    pub(super) fn new(policies: Policies) -> Self {
        Self { policies, by_model: HashMap::new(), changed: Vec::new() }
    }

    pub(super) fn get(&self, model: &str) -> Option<&Pool> {
        self.by_model.get(model)
    }

    pub(super) fn get_mut(&mut self, model: &str) -> Option<&mut Pool> {
        self.by_model.get_mut(model)
    }

    /// Takes a worker in among those of a model; gives its seat, and the name as it is shared.
    pub(super) fn join(
        &mut self,
        model: &str,
        slot: Slot,
        worker: &WorkerId,
        transport: Transport,
    ) -> (Arc<str>, Seat) {
        let name = self.by_model.get(model).map_or_else(|| Arc::from(model), |pool| Arc::clone(&pool.model));
        let pool = self
            .by_model
            .entry(Arc::clone(&name))
            .or_insert_with(|| Pool::new(Arc::clone(&name), self.policies.of(model)));
        let seat = pool.join(slot, worker, transport);
        (name, seat)
    }

    /// Takes a worker out; a model without workers is forgotten.
    pub(super) fn leave(&mut self, model: &str, worker: &WorkerId, seat: Seat) {
        let Some(pool) = self.by_model.get_mut(model) else { return };
        pool.leave(worker, seat);
        mark(pool, &mut self.changed);
        if pool.members == 0 {
            self.by_model.remove(model);
        }
    }

    /// Takes note of how a worker stands.
    pub(super) fn update(&mut self, model: &str, seat: Seat, standing: Standing) {
        let pool = self.by_model.get_mut(model).expect("a model with a member has a pool");
        if pool.update(seat, standing) {
            mark(pool, &mut self.changed);
        }
    }

    /// Panics where the order of candidates is not that of the members. `members`: of all pools.
    #[cfg(test)]
    pub(super) fn audit(&self, members: usize) {
        assert_eq!(self.by_model.values().map(|pool| pool.members as usize).sum::<usize>(), members);
        for pool in self.by_model.values() {
            for (lane, side) in pool.lanes.iter().flat_map(|lane| [(lane, false), (lane, true)]) {
                let here = || lane.members.iter().filter(|(_, member)| member.standing.paused == side);
                let of_side = if side { &lane.paused } else { &lane.ready };
                assert_eq!(of_side.live as usize, here().filter(|(_, member)| member.standing.live).count());
                let candidates: Vec<_> = of_side.ranking.iter().map(|(place, candidate)| (place, *candidate)).collect();
                let told = here().filter_map(|(place, member)| member.standing.candidate.map(|known| (place, known)));
                assert_eq!(candidates, told.collect::<Vec<_>>());
            }
        }
    }

    /// Models in which someone has got room, or has gone, since the last call.
    pub(super) fn take_changed(&mut self) -> Vec<Arc<str>> {
        let changed = std::mem::take(&mut self.changed);
        for model in &changed {
            if let Some(pool) = self.by_model.get_mut(model) {
                pool.changed = false;
            }
        }
        changed
    }
}

fn mark(pool: &mut Pool, changed: &mut Vec<Arc<str>>) {
    if !std::mem::replace(&mut pool.changed, true) {
        changed.push(Arc::clone(&pool.model));
    }
}
