//! The workers of one model, those that may be chosen kept in order.
//!
//! What the registry knows of a worker is told here whenever it changes ([`Pool::update`]); a choice looks at nobody.

use std::collections::HashMap;
use std::sync::Arc;

use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;
use rand::{Rng, RngExt as _};
use slab::Slab;

use super::{Lack, Slot};
use crate::dispatch::{Candidate, Candidates, LANES, Policies, Policy, PolicyRequest, Ranking, Ring, Seat, dice};
use crate::journal::{Change, Machine};

/// On whose behalf a request is made; `None`: nobody's in particular.
pub(crate) type Key = Option<Arc<str>>;

/// How a worker stands to requests for one model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Standing {
    /// Whether it would take a request, now or when it has room.
    pub(crate) live: bool,
    /// Whether it is spared while others are not.
    pub(crate) paused: bool,
    /// Whether its circuit is open; then it is spared, too.
    pub(crate) open: bool,
    /// What policies see of it, where it has room now.
    pub(crate) candidate: Option<Candidate>,
}

/// The workers of one model.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The model's name.
    pub(crate) model: Arc<str>,
    /// Its number among all pools there have been.
    pub(crate) stream: u32,
    pub(crate) policy: &'static dyn Policy,
    lanes: [Lane; LANES],
    ring: Option<Ring>,
    members: u32,
    /// Number of the last request that was given.
    pub(super) turn: u64,
    /// Held tickets of each key that has any.
    keys: HashMap<Key, u32>,
    /// Whether it is among those whose change nobody has looked at yet.
    changed: bool,
    /// What a journal has not been told yet, where one is kept.
    untold: Option<Untold>,
    /// Whether a journal knows of it.
    pub(crate) is_told: bool,
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
    open: u32,
    ranking: Ranking,
}

/// How many workers of a model stand how to a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) live: u32,
    /// Of these, those whose circuit is open.
    pub(super) open: u32,
    /// Of these, those that have room.
    pub(super) room: u32,
}

/// Those that the request can be said to, and does not exclude.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Those that nothing speaks against.
    pub(super) ready: Census,
    /// Those that are spared while there is one of the others.
    pub(super) spared: Census,
    /// Live ones that it excludes.
    pub(super) excluded: u32,
}

#[derive(Debug)]
struct Member {
    slot: Slot,
    standing: Standing,
    /// Its name, where a journal is kept.
    name: Option<Arc<str>>,
}

/// A worker that was picked, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pick {
    pub(super) slot: Slot,
    pub(crate) seat: Seat,
    /// Whether it was one of those that are spared while there are others.
    pub(crate) is_paused: bool,
    /// Where the policy's random numbers began.
    pub(crate) seed: u64,
}

/// What a choice came to.
pub(super) enum Choice {
    /// That worker.
    Picked(Pick),
    /// Someone would take it, and has no room now.
    NoRoom,
    /// Nobody would take it.
    Nobody,
}

impl Pool {
    fn new(model: Arc<str>, policy: &'static dyn Policy, stream: u32, untold: Option<Untold>) -> Self {
        let ring = policy.wants_ring().then(Ring::default);
        let lanes = std::array::from_fn(|_| Lane::default());
        let keys = HashMap::new();
        Self { model, stream, policy, lanes, ring, members: 0, turn: 0, keys, changed: false, untold, is_told: false }
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
        let name = self.untold.as_ref().map(|_| Arc::from(worker.as_str()));
        let place = self.lanes[lane].members.insert(Member { slot, standing: Standing::default(), name });
        let seat = Seat { lane: lane as u8, place: place as u32 };
        if let Some(ring) = &mut self.ring {
            ring.add(worker, seat);
        }
        if let Some(untold) = &mut self.untold {
            untold.mark(seat);
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
        if let Some(untold) = &mut self.untold {
            untold.mark(seat);
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
        if let Some(untold) = &mut self.untold {
            untold.mark(seat);
        }
        let sides = [ready, paused];
        let (from, to) = (usize::from(before.paused), usize::from(standing.paused));
        sides[from].live -= u32::from(before.live);
        sides[from].open -= u32::from(before.open);
        sides[to].live += u32::from(standing.live);
        sides[to].open += u32::from(standing.open);
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
        let wanted = lanes_of(transports);
        let Survey { ready, spared, .. } = self.survey(exclude, wanted);
        let is_paused = match (ready.live, spared.live) {
            (0, 0) => return Choice::Nobody,
            (0, _) => true,
            _ => false,
        };
        // A seed of its own makes each decision one that can be made again.
        let seed = rng.next_u64();
        match self.pick(wanted, is_paused, exclude, affinity, &mut dice(seed)) {
            Some(seat) => Choice::Picked(Pick { slot: self.member(seat).slot, seat, is_paused, seed }),
            None => Choice::NoRoom,
        }
    }

    /// Tells `changes` how each worker stands of whom it has not been told, with its name where that is new.
    pub(crate) fn tell(&mut self, changes: &mut Vec<Change>) {
        let Some(untold) = &mut self.untold else { return };
        for seat in untold.seats.drain(..) {
            let told = &mut untold.told[usize::from(seat.lane)][seat.place as usize];
            told.is_marked = false;
            changes.push(match self.lanes[usize::from(seat.lane)].members.get(seat.place as usize) {
                Some(member) => {
                    let name = member.name.as_ref().expect("where a journal is kept, members have names");
                    Change::of(seat, &member.standing, name, &mut told.machine)
                }
                None => {
                    told.machine = None;
                    Change::gone(seat)
                }
            });
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

    /// How those stand that speak one of `transports` (none: any). A look at nobody but `exclude`, each of which must be
    /// there once.
    pub(super) fn prospects(&self, exclude: &[Seat], transports: &[Transport]) -> Survey {
        self.survey(exclude, lanes_of(transports))
    }

    fn survey(&self, exclude: &[Seat], wanted: [bool; LANES]) -> Survey {
        let mut survey = Survey::default();
        for (lane, _) in self.lanes.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
            survey.ready.add(&lane.ready);
            survey.spared.add(&lane.paused);
        }
        for seat in exclude.iter().filter(|seat| wanted[usize::from(seat.lane)]) {
            let standing = self.member(*seat).standing;
            let side = if standing.paused { &mut survey.spared } else { &mut survey.ready };
            side.take_away(&standing);
            survey.excluded += u32::from(standing.live);
        }
        survey
    }

    /// Whether someone would take a request, now or later.
    pub(super) fn is_served(&self) -> bool {
        self.lanes.iter().any(|lane| lane.ready.live + lane.paused.live > 0)
    }

    /// Some of the workers: all, where they are few, else that many drawn by chance.
    pub(super) fn sample(&self, most: usize, rng: &mut dyn Rng) -> Vec<Slot> {
        if self.members as usize <= most {
            return self.slots().collect();
        }
        let mut slots = Vec::with_capacity(most);
        for lane in self.lanes.iter().filter(|lane| !lane.members.is_empty()) {
            let draws = (0..most).map(|_| rng.random_range(0..lane.members.capacity()));
            slots.extend(draws.filter_map(|place| lane.members.get(place)).map(|member| member.slot));
        }
        slots
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

    /// Who sits where, as a look at all says.
    #[cfg(test)]
    pub(crate) fn seen(&self) -> Vec<(Seat, Arc<str>, Standing)> {
        let lanes = (0..).zip(&self.lanes);
        let members = lanes.flat_map(|(lane, it)| it.members.iter().map(move |(place, member)| (lane, place, member)));
        let seen = members.map(|(lane, place, member)| {
            (Seat { lane, place: place as u32 }, member.name.clone().expect("a journal is kept"), member.standing)
        });
        seen.collect()
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

/// Seats of which a journal has not been told, each once.
#[derive(Debug, Default)]
struct Untold {
    seats: Vec<Seat>,
    /// What it was told of each seat, by lane and place.
    told: [Vec<Told>; LANES],
}

#[derive(Debug, Default, Clone)]
struct Told {
    is_marked: bool,
    machine: Option<Arc<Machine>>,
}

impl Untold {
    fn mark(&mut self, seat: Seat) {
        let told = &mut self.told[usize::from(seat.lane)];
        let place = seat.place as usize;
        if place >= told.len() {
            told.resize(place + 1, Told::default());
        }
        if !std::mem::replace(&mut told[place].is_marked, true) {
            self.seats.push(seat);
        }
    }
}

impl Lane {
    fn ranking(&self, is_paused: bool) -> &Ranking {
        if is_paused { &self.paused.ranking } else { &self.ready.ranking }
    }
}

impl Survey {
    /// What a request would find none of; `None`: there is someone to pick from.
    pub(super) fn lack(&self) -> Option<Lack> {
        match (self.ready, self.spared) {
            (ready, spared) if ready.live + spared.live == 0 => Some(Lack::Worker),
            (ready, _) if ready.live > 0 => (ready.room == 0).then_some(Lack::Room),
            (_, spared) => (spared.room == 0).then_some(Lack::Room),
        }
    }
}

impl Census {
    fn add(&mut self, side: &Side) {
        self.live += side.live;
        self.open += side.open;
        self.room += side.ranking.count();
    }

    fn take_away(&mut self, standing: &Standing) {
        self.live -= u32::from(standing.live);
        self.open -= u32::from(standing.open);
        self.room -= u32::from(standing.candidate.is_some());
    }

    /// Live ones that have no room, though their circuit is not open.
    pub(super) fn full(&self) -> u32 {
        self.live - self.open - self.room
    }
}

/// The lanes of those who speak one of `transports`; none: all.
pub(crate) fn lanes_of(transports: &[Transport]) -> [bool; LANES] {
    std::array::from_fn(|lane| transports.is_empty() || transports.iter().any(|&speaks| lane_of(speaks) == lane))
}

pub(crate) fn lane_of(transport: Transport) -> usize {
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
    /// Whether a journal is told of changes.
    are_told: bool,
    /// How many pools there have been.
    streams: u32,
    /// Models for which someone who waits may have to hear of a change.
    changed: Vec<Arc<str>>,
}

impl Pools {
    pub(super) fn new(policies: Policies, are_told: bool) -> Self {
        Self { policies, by_model: HashMap::new(), are_told, streams: 0, changed: Vec::new() }
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
        let pool = self.by_model.entry(Arc::clone(&name)).or_insert_with(|| {
            self.streams = self.streams.wrapping_add(1);
            let untold = self.are_told.then(Untold::default);
            Pool::new(Arc::clone(&name), self.policies.of(model), self.streams, untold)
        });
        let seat = pool.join(slot, worker, transport);
        (name, seat)
    }

    /// Takes a worker out; a model without workers is forgotten, and the number of its pool given.
    pub(super) fn leave(&mut self, model: &str, worker: &WorkerId, seat: Seat) -> Option<u32> {
        let pool = self.by_model.get_mut(model)?;
        pool.leave(worker, seat);
        mark(pool, &mut self.changed);
        let stream = (pool.members == 0).then_some(pool.stream)?;
        self.by_model.remove(model);
        Some(stream)
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
                assert_eq!(of_side.open as usize, here().filter(|(_, member)| member.standing.open).count());
                let candidates: Vec<_> = of_side.ranking.iter().map(|(place, candidate)| (place, *candidate)).collect();
                let told = here().filter_map(|(place, member)| member.standing.candidate.map(|known| (place, known)));
                assert_eq!(candidates, told.collect::<Vec<_>>());
            }
        }
    }

    /// Names of the models that someone would take a request for, in no order.
    pub(super) fn served(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_model.values().filter(|pool| pool.is_served()).map(|pool| &pool.model)
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
