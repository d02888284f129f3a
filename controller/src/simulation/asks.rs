//! Those who ask the controller: each is answered once, in its time, and in its turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_shared::control::Grant;
use muster_shared::id::{GatewayId, WorkerId};
use muster_shared::problem::{Kind, Problem};

use crate::desk::Patience;
use crate::registry::{Asker, Holder};

/// Time that one class of priority is worth.
const CLASS: i64 = 1_000_000_000;

/// Everyone who has asked and is not answered.
#[derive(Debug, Default)]
pub(super) struct Asks {
    open: BTreeMap<u64, Asked>,
}

/// One who has asked.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) gateway: GatewayId,
    pub(super) model: String,
    exclude: Vec<WorkerId>,
    key: Option<Arc<str>>,
    priority: i8,
    key_priority: i8,
    came: Instant,
    until: Instant,
}

impl Asks {
    pub(super) fn ask(&mut self, ask: u64, asker: &Asker, patience: &Patience, max_wait: Duration, now: Instant) {
        let Holder::Gateway(gateway) = asker.holder else { return };
        let asked = Asked {
            gateway,
            model: asker.request.model.clone(),
            exclude: asker.request.exclude.clone(),
            key: asker.key.clone(),
            priority: patience.priority,
            key_priority: patience.key_priority,
            came: now,
            until: now + patience.wait.min(max_wait),
        };
        self.open.insert(ask, asked);
    }

    /// Forgets one who has gone away.
    pub(super) fn abandon(&mut self, ask: u64) {
        self.open.remove(&ask);
    }

    pub(super) fn grant(&mut self, ask: u64, grant: &Grant) -> Result<Asked, String> {
        let asked = self.take(ask)?;
        if asked.exclude.contains(&grant.worker) {
            return Err(format!("{} is handed out to one who excludes it", grant.worker));
        }
        self.check_turn(ask, &asked)?;
        Ok(asked)
    }

    pub(super) fn refuse(&mut self, ask: u64, problem: &Problem, now: Instant) -> Result<(), String> {
        let asked = self.take(ask)?;
        if problem.kind == Kind::Overloaded && asked.came < now && now < asked.until {
            return Err(format!("question {ask} is refused before the end of its wait: {problem}"));
        }
        Ok(())
    }

    fn take(&mut self, ask: u64) -> Result<Asked, String> {
        self.open.remove(&ask).ok_or_else(|| format!("question {ask} is answered twice, or after it was taken back"))
    }

    /// Nobody equal waits longer, and nobody of a lower class has waited a second longer for each class.
    fn check_turn(&mut self, ask: u64, asked: &Asked) -> Result<(), String> {
        let is_equal = |other: &Asked| {
            other.model == asked.model
                && other.exclude == asked.exclude
                && other.key == asked.key
                && other.key_priority == asked.key_priority
        };
        let since = |other: &Asked| -> i64 {
            let later = other.came.saturating_duration_since(asked.came).as_nanos();
            let earlier = asked.came.saturating_duration_since(other.came).as_nanos();
            let age = i64::try_from(later).expect("short") - i64::try_from(earlier).expect("short");
            age - i64::from(other.priority) * CLASS
        };
        let own = (since(asked), ask);
        match self.open.iter().find(|(number, other)| is_equal(other) && (since(other), **number) < own) {
            Some((other, _)) => Err(format!("question {ask} is served before {other}, whose turn it is")),
            None => Ok(()),
        }
    }

    /// Nobody waits beyond the end of its wait.
    pub(super) fn check_time(&self, now: Instant) -> Result<(), String> {
        match self.open.iter().find(|(_, asked)| asked.until <= now) {
            Some((ask, _)) => Err(format!("question {ask} is not answered by the end of its wait")),
            None => Ok(()),
        }
    }

    /// Nobody waits for a model of a worker that has room.
    pub(super) fn check_room(&self, worker: &WorkerId, model: &str) -> Result<(), String> {
        let waits = |asked: &Asked| asked.model == model && !asked.exclude.contains(worker);
        match self.open.iter().find(|(_, asked)| waits(asked)) {
            Some((ask, _)) => Err(format!("question {ask} waits, and {worker} has room for `{model}`")),
            None => Ok(()),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}
