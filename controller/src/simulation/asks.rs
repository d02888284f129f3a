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

mod tests {
    use muster_shared::id::TicketId;
    use muster_shared::transport::Transport;

    use super::*;
    use crate::fixtures::{asker, secs};

    fn grant() -> Grant {
        let (ticket, worker) = (TicketId::from_random(1), WorkerId::new("w"));
        Grant { ticket, worker, address: String::new(), transport: Transport::Http, model: None }
    }

    /// Two who ask at these seconds with these priorities.
    fn two(seconds: [u64; 2], priorities: [i8; 2]) -> (Asks, Instant) {
        let (mut asks, start) = (Asks::default(), Instant::now());
        for number in [0, 1] {
            let patience = Patience { priority: priorities[number], ..Patience::usual(secs(9)) };
            let asker = asker(GatewayId::from_random(1));
            asks.ask(number as u64, &asker, &patience, secs(9), start + secs(seconds[number]));
        }
        (asks, start)
    }

    #[test]
    fn whoever_is_served_out_of_turn_is_seen() {
        two([0, 1], [0, 0]).0.grant(0, &grant()).expect("the first");
        two([0, 1], [0, 0]).0.grant(1, &grant()).expect_err("not before the first");
        two([0, 1], [0, 2]).0.grant(1, &grant()).expect("it is of a higher class");
        two([0, 3], [0, 2]).0.grant(1, &grant()).expect_err("the first has aged");
    }

    #[test]
    fn whoever_is_answered_twice_or_too_late_or_not_at_all_is_seen() {
        let (mut asks, start) = two([0, 0], [0, 0]);
        asks.grant(0, &grant()).expect("once");
        asks.grant(0, &grant()).expect_err("twice");
        asks.check_room(&WorkerId::new("w"), "m").expect_err("one waits");
        asks.check_time(start + secs(8)).expect("there is time");
        asks.check_time(start + secs(9)).expect_err("there is none");
        let full = Problem::new(Kind::Overloaded, "full");
        asks.refuse(1, &full, start + secs(8)).expect_err("it would have waited longer");
    }
}
