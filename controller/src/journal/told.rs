//! The journal in the words of the wire, and back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use muster_shared::id::WorkerId;
use muster_shared::journal::{self as wire, Decision, End, Header, Kept, Line, Step};
use muster_shared::transport::Transport;

use super::entry::{Change, Ending, Entry, Machine, Verdict};
use super::{Snapshot, Stream};
use crate::dispatch::{LANES, Seat};
use crate::registry::{Holder, millis};

/// The time of day, by which moments are told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// A moment.
    pub(crate) now: Instant,
    /// The same in milliseconds since 1970.
    pub(crate) unix_ms: u64,
}

impl Clock {
    /// A moment in milliseconds since 1970.
    fn tell(self, at: Instant) -> u64 {
        self.unix_ms.saturating_sub(millis(self.now.saturating_duration_since(at)))
    }
}

impl Snapshot {
    /// How far back it goes.
    pub(super) fn kept(&self, clock: Clock) -> Kept {
        let since_ms = self.decisions().next().map(|(_, entry, _, _)| clock.tell(entry.at));
        Kept { decisions: self.endings.len() as u64, limit: self.limit as u64, since_ms }
    }

    /// The whole journal, line by line.
    pub(crate) fn lines(&self, clock: Clock) -> impl Iterator<Item = Line> {
        let header = Header {
            form: wire::FORM,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at_ms: clock.unix_ms,
            pools: self.streams.len() as u64,
            kept: self.kept(clock),
        };
        let mut pools: Vec<u32> = self.streams.keys().copied().collect();
        pools.sort_unstable();
        let pools = pools.into_iter().map(|number| Line::Pool(self.streams[&number].tell(number)));
        let mut all = AllNames::default();
        let steps = self.decisions().map(move |(number, entry, changes, ending)| {
            let names = all.follow(self, entry, changes);
            let decision = self.decision(number, entry, ending, names, clock);
            let changes = changes.iter().map(Change::tell).collect();
            Line::Step(Box::new(Step { pool: entry.stream, changes, decision }))
        });
        std::iter::once(Line::Journal(header)).chain(pools).chain(steps)
    }

    /// One decision. `names`: those of its workers then.
    pub(super) fn decision(
        &self,
        number: u64,
        entry: &Entry,
        ending: Ending,
        names: Option<&Names>,
        clock: Clock,
    ) -> Decision {
        let stream = entry.stream.and_then(|stream| self.streams.get(&stream));
        let model = match (&entry.verdict, stream) {
            (Verdict::Refused(refusal), _) => refusal.model.clone(),
            (_, Some(stream)) => stream.model.to_string(),
            (_, None) => String::new(),
        };
        let wanted = Transport::ALL.into_iter().zip(entry.wanted);
        let transports = match entry.wanted {
            [true, true, true, true] => Vec::new(),
            _ => wanted.filter(|(_, is_wanted)| *is_wanted).map(|(transport, _)| transport).collect(),
        };
        Decision {
            number,
            at_ms: clock.tell(entry.at),
            request: entry.request.as_deref().map(str::to_owned),
            gateway: entry.holder.and_then(|holder| match holder {
                Holder::Gateway(gateway) => Some(gateway),
                Holder::Relay => None,
            }),
            key: entry.key.as_deref().map(str::to_owned),
            model,
            asked: entry.asked.as_deref().map(str::to_owned),
            exact: entry.exact,
            transports,
            exclude: entry.exclude.as_deref().unwrap_or_default().to_vec(),
            affinity: entry.affinity,
            waited_ms: entry.waited_ms.into(),
            policy: stream.map(|stream| stream.policy.name().to_owned()),
            verdict: entry.verdict.tell(names),
            end: ending.tell(),
        }
    }
}

impl Verdict {
    fn tell(&self, names: Option<&Names>) -> wire::Verdict {
        match self {
            &Self::Picked { seat, is_paused, seed } => wire::Verdict::Picked {
                worker: WorkerId::new(names.and_then(|names| names.get(seat)).unwrap_or_default()),
                place: seat.place,
                transport: transport(seat),
                spared: is_paused,
                seed,
            },
            Self::Named(worker) => wire::Verdict::Named { worker: worker.clone() },
            Self::Refused(refusal) => wire::Verdict::Refused { kind: refusal.kind, message: refusal.message.clone() },
        }
    }
}

impl Ending {
    fn tell(self) -> Option<End> {
        match self {
            Self::Unknown => None,
            Self::Lapsed => Some(End::Lapsed),
            Self::Released { outcome, took_ms, ttft_ms, tokens } => {
                Some(End::Released { outcome, took_ms: took_ms.into(), ttft_ms: ttft_ms.map(u64::from), tokens })
            }
        }
    }
}

impl Stream {
    fn tell(&self, pool: u32) -> wire::Pool {
        let seats = self.seats.iter().flatten().flatten().map(Change::tell).collect();
        wire::Pool { pool, model: self.model.to_string(), policy: self.policy.name().to_owned(), seats }
    }
}

/// Names of the workers of a pool, by their seats.
#[derive(Debug, Default)]
pub(super) struct Names([Vec<Option<Arc<str>>>; LANES]);

impl Names {
    fn apply(&mut self, change: &Change) {
        let Seat { lane, place } = change.seat();
        let (names, place) = (&mut self.0[usize::from(lane)], place as usize);
        if place >= names.len() {
            names.resize(place + 1, None);
        }
        if let Some(machine) = &change.machine {
            names[place] = Some(Arc::clone(&machine.worker));
        } else if change.is_gone() {
            names[place] = None;
        }
    }

    fn get(&self, seat: Seat) -> Option<&str> {
        self.0[usize::from(seat.lane)].get(seat.place as usize)?.as_deref()
    }
}

/// Names of the workers of every pool, as decisions go by.
#[derive(Debug, Default)]
pub(super) struct AllNames(HashMap<u32, Names>);

impl AllNames {
    /// Goes on to a decision. Gives the names of its pool.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, entry: &Entry, changes: &[Change]) -> Option<&Names> {
        let id = entry.stream?;
        let names = self.0.entry(id).or_insert_with(|| {
            let mut names = Names::default();
            let before = snapshot.streams.get(&id).into_iter().flat_map(|stream| stream.seats.iter().flatten());
            before.flatten().for_each(|change| names.apply(change));
            names
        });
        changes.iter().for_each(|change| names.apply(change));
        Some(names)
    }
}

/// The protocol of those who sit in a seat's lane.
pub(super) fn transport(seat: Seat) -> Transport {
    Transport::ALL[usize::from(seat.lane)]
}

/// Places of a lane; more workers than any fleet has.
const MOST_PLACES: u32 = 1 << 17;

impl Change {
    fn tell(&self) -> wire::Change {
        let (standing, seat) = (self.standing(), self.seat());
        wire::Change {
            transport: transport(seat),
            place: seat.place,
            gone: self.is_gone(),
            live: standing.live,
            spared: standing.paused,
            open: standing.open,
            busy: self.busy(),
            machine: self.machine.as_deref().map(|machine| {
                let (speed, capacity, resources) = machine.parts();
                wire::Machine { worker: WorkerId::new(&*machine.worker), speed, capacity, resources }
            }),
        }
    }

    /// What a journal told.
    ///
    /// # Errors
    /// Words for what cannot be.
    pub(super) fn read(told: &wire::Change) -> Result<Self, String> {
        if told.place >= MOST_PLACES {
            return Err(format!("the place {} is beyond {MOST_PLACES}, which no fleet has", told.place));
        }
        let lane = Transport::ALL.iter().position(|&transport| transport == told.transport).unwrap_or_default();
        let seat = Seat { lane: lane as u8, place: told.place };
        if told.gone {
            return Ok(Self::gone(seat));
        }
        let machine = told.machine.as_ref().map(|machine| {
            if machine.speed > 0.0 {
                let parts = (machine.speed, machine.capacity, machine.resources);
                return Ok(Arc::new(Machine::of_parts(Arc::from(machine.worker.as_str()), parts)));
            }
            Err(format!("the speed of `{}` is {}; it must be above 0", machine.worker, machine.speed))
        });
        Ok(Self::of_parts(seat, [told.live, told.spared, told.open], told.busy, machine.transpose()?))
    }
}
