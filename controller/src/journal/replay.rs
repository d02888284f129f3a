//! The past under another policy.

use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;

use muster_shared::id::WorkerId;
use muster_shared::journal::{self as wire, Decision, Line, Step, Verdict};
use muster_shared::transport::Transport;

use super::entry::Change;
use super::past::{Asked, Past};
use super::reader::{JournalError, Reader};
use crate::config::PolicyName;
use crate::dispatch::{self, LANES, Policy};
use crate::registry::lanes_of;

/// What a policy would have picked.
///
/// Each decision is made again among the candidates as they were: what the worker that was picked had to do afterwards is
/// in the next decision, whoever would have been picked under the other policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// Decisions that were made again: all that picked a worker.
    pub decisions: u64,
    /// Decisions that refused, as any policy would have, and those where all were full.
    pub without: u64,
    /// Of the decisions, those that came to the same worker.
    pub same: u64,
    /// The others, oldest first.
    pub differences: Vec<Difference>,
    /// How often each worker was picked.
    pub workers: BTreeMap<WorkerId, Tally>,
}

/// How often a worker was picked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Then.
    pub then: u64,
    /// In the replay.
    pub now: u64,
}

/// A decision that came to another worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its line in the journal.
    pub line: u64,
    /// Its number.
    pub number: u64,
    /// The request's id, if it has one.
    pub request: Option<String>,
    /// The model.
    pub model: String,
    /// The policy that picked then.
    pub policy: String,
    /// Who was picked then.
    pub then: WorkerId,
    /// Who is picked in the replay; `None`: nobody.
    pub now: Option<WorkerId>,
}

/// Makes each decision of a journal again, under `policy` or the one that made it.
///
/// # Errors
/// When the input is no journal, or not a whole one.
pub fn replay(input: impl BufRead, policy: Option<PolicyName>) -> Result<Replay, JournalError> {
    let mut reader = Reader::new(input)?;
    let mut replayer = Replayer { policy, pools: HashMap::new(), replay: Replay::default() };
    while let Some(line) = reader.next()? {
        let done = match &line {
            Line::Pool(pool) => replayer.begin(pool),
            Line::Step(step) => replayer.step(step, reader.line),
            Line::Journal(_) => Ok(()), // there is one, and the reader has it
        };
        done.map_err(|message| reader.error(message))?;
    }
    Ok(replayer.replay)
}

struct Replayer {
    policy: Option<PolicyName>,
    pools: HashMap<u32, Pool>,
    replay: Replay,
}

struct Pool {
    model: String,
    past: Past,
}

impl Replayer {
    fn begin(&mut self, told: &wire::Pool) -> Result<(), String> {
        let own = by_name(&told.policy)?;
        let policy = self.policy.map_or(own, PolicyName::policy);
        let mut past = Past::new(policy);
        told.seats.iter().try_for_each(|change| apply(&mut past, change))?;
        let pool = Pool { model: told.model.clone(), past };
        match self.pools.insert(told.pool, pool) {
            None => Ok(()),
            Some(_) => Err(format!("the pool {} is told of twice", told.pool)),
        }
    }

    fn step(&mut self, step: &Step, line: u64) -> Result<(), String> {
        let Some(number) = step.pool else {
            return self.without(step);
        };
        let pool = self.pools.get_mut(&number).ok_or_else(|| format!("the pool {number} has not been told of"))?;
        step.changes.iter().try_for_each(|change| apply(&mut pool.past, change))?;
        let Decision { verdict, exclude, affinity, transports, .. } = &step.decision;
        let Verdict::Picked { worker, place, transport, spared, seed } = verdict else {
            return self.without(step);
        };
        let wanted: [bool; LANES] = lanes_of(transports);
        let (model, affinity) = (&*pool.model, *affinity);
        let asked = Asked { model, affinity, wanted, is_paused: *spared, exclude, seed: *seed };
        let then = pool.past.worker_at(*transport, *place);
        if then.as_deref() != Some(worker.as_str()) {
            return Err(format!(
                "`{worker}` was picked at place {place} of {transport}, where {} sits",
                match then {
                    Some(other) => format!("`{other}`"),
                    None => "nobody".to_owned(),
                }
            ));
        }
        let now = pool.past.pick(&asked).and_then(|seat| pool.past.worker(seat)).map(|name| WorkerId::new(&*name));
        self.count(step, worker, now, line);
        Ok(())
    }

    fn count(&mut self, step: &Step, then: &WorkerId, now: Option<WorkerId>, line: u64) {
        let Replay { decisions, same, differences, workers, .. } = &mut self.replay;
        *decisions += 1;
        workers.entry(then.clone()).or_default().then += 1;
        now.iter().for_each(|now| workers.entry(now.clone()).or_default().now += 1);
        if now.as_ref() == Some(then) {
            *same += 1;
            return;
        }
        let Decision { number, request, model, policy, .. } = &step.decision;
        differences.push(Difference {
            line,
            number: *number,
            request: request.clone(),
            model: model.clone(),
            policy: policy.clone().unwrap_or_default(),
            then: then.clone(),
            now,
        });
    }

    fn without(&mut self, step: &Step) -> Result<(), String> {
        if matches!(step.decision.verdict, Verdict::Picked { .. }) {
            return Err("a worker was picked, but from no pool".to_owned());
        }
        self.replay.without += 1;
        Ok(())
    }
}

fn by_name(name: &str) -> Result<&'static dyn Policy, String> {
    dispatch::by_name(name).ok_or_else(|| {
        let known: Vec<&str> = dispatch::names().collect();
        format!("no policy is called `{name}`; there are {}", known.join(", "))
    })
}

/// Does a change that was told.
fn apply(past: &mut Past, told: &wire::Change) -> Result<(), String> {
    let change = Change::read(told)?;
    past.apply(&change);
    if !told.gone && past.worker(change.seat()).is_none() {
        return Err(format!("nobody is known at place {} of {}, and yet it changes", told.place, told.transport));
    }
    Ok(())
}

impl Past {
    fn worker_at(&self, transport: Transport, place: u32) -> Option<std::sync::Arc<str>> {
        let lane = Transport::ALL.iter().position(|&other| other == transport).unwrap_or_default();
        self.worker(crate::dispatch::Seat { lane: lane as u8, place })
    }
}
