//! Workers that get no more requests, for a time or for good.

use std::time::Instant;

use muster_shared::control::{Leave, WorkerState};
use muster_shared::id::WorkerId;
use muster_shared::problem::{Kind, Problem};

use super::changes::Cause;
use super::{Registry, Slot, refuse_stale};

/// Workers that are named to one who asks for an unknown one.
const NAMED: usize = 3;
/// Workers whose names are compared with the one that is not known; to compare more would keep everybody waiting.
const COMPARED: usize = 1000;
/// Characters of a name that are compared.
const LETTERS: usize = 64;

impl Registry {
    /// Stops requests to a worker; those that run go on. A worker says so of itself when it stops, with its incarnation;
    /// whoever leaves that out is an operator, who can undo it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it is not known, [`Kind::Stale`] when the caller means an older process.
    pub(crate) fn drain(&mut self, leave: &Leave, now: Instant) -> Result<(), Problem> {
        let slot = self.leaving(leave, now)?;
        let worker = &mut self.workers[slot];
        let by_itself = leave.incarnation.is_some();
        if worker.gone_since.is_some() {
            return Ok(()); // it gets nothing as it is
        }
        let reason = if by_itself { "it is stopping" } else { "drained by an operator" };
        if !worker.draining {
            tracing::info!(worker = %leave.id, reason, "a worker drains");
            worker.draining = true;
            worker.cause = Some(Cause::new(reason, &[WorkerState::Draining]));
        } else if by_itself {
            worker.told.reason = reason.into();
        }
        worker.stopping |= by_itself;
        self.refresh(slot, now);
        Ok(())
    }

    /// Lets a worker have requests again that an operator has drained.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it is not known or has gone, [`Kind::Stale`] when it drains since it stops, or when the
    /// caller means an older process.
    pub(crate) fn resume(&mut self, leave: &Leave, now: Instant) -> Result<(), Problem> {
        let slot = self.leaving(leave, now)?;
        let worker = &mut self.workers[slot];
        if worker.gone_since.is_some() {
            return Err(has_gone(leave));
        }
        if worker.stopping {
            let message =
                format!("worker `{}` is stopping by itself and takes no more requests; start it anew", leave.id);
            return Err(Problem::new(Kind::Stale, message).with_param("id"));
        }
        if worker.is_removed() {
            let message = format!("worker `{}` is written down no more; put it into the peers file again", leave.id);
            return Err(Problem::new(Kind::Stale, message).with_param("id"));
        }
        if worker.draining {
            tracing::info!(worker = %leave.id, "a worker is resumed");
            worker.draining = false;
            worker.cause = Some(Cause::new("resumed by an operator", &[WorkerState::Ready, WorkerState::Suspect]));
        }
        self.refresh(slot, now);
        Ok(())
    }

    pub(super) fn leaving(&mut self, leave: &Leave, now: Instant) -> Result<Slot, Problem> {
        self.settle(now);
        let slot = self.by_id.get(&leave.id).copied().ok_or_else(|| self.unknown(&leave.id))?;
        if let Some(incarnation) = leave.incarnation {
            let known = &self.workers[slot];
            refuse_stale(known, incarnation)?;
            if incarnation > known.incarnation {
                let message = format!(
                    "worker `{}` of the incarnation {incarnation} is not known; {} has registered",
                    leave.id, known.incarnation
                );
                return Err(Problem::new(Kind::Stale, message).with_param("incarnation"));
            }
        }
        Ok(slot)
    }

    fn unknown(&self, id: &WorkerId) -> Problem {
        let mut known: Vec<&WorkerId> = self.by_id.keys().take(COMPARED).collect();
        let start = |name: &str| name.chars().take(LETTERS).collect::<String>();
        let wanted = start(id.as_str());
        known.sort_by_cached_key(|known| strsim::damerau_levenshtein(&wanted, &start(known.as_str())));
        let named: Vec<String> = known.iter().take(NAMED).map(|known| format!("`{known}`")).collect();
        let others = match self.by_id.len() {
            0 => "no worker has registered".to_owned(),
            count if count <= NAMED => format!("known are {}", named.join(", ")),
            count => format!("of the {count} that are, nearest to it are {}", named.join(", ")),
        };
        Problem::new(Kind::NotFound, format!("no worker `{id}` is known; {others}")).with_param("id")
    }
}

fn has_gone(leave: &Leave) -> Problem {
    let message = format!("worker `{}` has gone; it must register again before anything can be asked of it", leave.id);
    Problem::new(Kind::NotFound, message).with_param("id")
}

#[cfg(test)]
mod tests {
    use muster_shared::control::{Registration, WorkerState};
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{beat, leave, rules, secs, worker};
    use crate::registry::Origin;

    fn registry(ids: &[&str], now: Instant) -> Registry {
        let mut registry = Registry::new(rules());
        ids.iter().for_each(|id| register(&mut registry, worker(id, 1), now));
        registry
    }

    fn register(registry: &mut Registry, worker: Registration, now: Instant) {
        registry.register(worker, Origin::Native, now).expect("it is taken");
    }

    fn state(registry: &Registry, now: Instant) -> WorkerState {
        registry.workers(now)[0].state
    }

    fn own(id: &str) -> Leave {
        Leave { incarnation: Some(1), ..leave(id) }
    }

    #[test]
    fn an_operators_drain_outlives_beats_and_registrations_and_ends_with_the_process() {
        let now = Instant::now();
        let mut registry = registry(&["w"], now);
        for _ in 0..2 {
            registry.drain(&leave("w"), now).expect("again is the same");
            registry.heartbeat(&beat("w", 0), now).expect("it lives");
            register(&mut registry, worker("w", 1), now);
            assert_eq!(state(&registry, now), WorkerState::Draining);
        }
        register(&mut registry, Registration { incarnation: 2, ..worker("w", 1) }, now);
        assert_eq!(state(&registry, now), WorkerState::Ready);
        let reasons: Vec<_> = registry.changes.newest_first().map(|changed| changed.reason.as_ref()).collect();
        assert_eq!(reasons, ["registered: a new process", "drained by an operator", "registered"]);
    }

    #[test]
    fn what_an_operator_drained_is_resumed_and_what_stops_is_not() {
        let now = Instant::now();
        let mut registry = registry(&["w"], now);
        registry.resume(&leave("w"), now).expect("it need not drain");
        registry.drain(&leave("w"), now).expect("it is known");
        registry.resume(&leave("w"), now).expect("an operator drained it");
        assert_eq!(state(&registry, now), WorkerState::Ready);
        registry.drain(&leave("w"), now).expect("it is known");
        registry.drain(&own("w"), now).expect("it is known");
        let problem = registry.resume(&leave("w"), now).expect_err("it stops");
        assert_eq!((problem.kind, problem.kind.status()), (Kind::Stale, 409));
        assert!(problem.message.contains("is stopping by itself"), "{problem}");
        assert_eq!(state(&registry, now), WorkerState::Draining);
    }

    #[test]
    fn one_that_has_gone_gets_nothing_as_it_is_and_cannot_be_resumed() {
        let now = Instant::now();
        let mut registry = registry(&["w"], now);
        let later = now + secs(60);
        for leave in [leave("w"), own("w")] {
            registry.drain(&leave, later).expect("it is known");
            assert_eq!(state(&registry, later), WorkerState::Gone);
        }
        let problem = registry.resume(&leave("w"), later).expect_err("it has gone");
        assert_eq!(problem.kind, Kind::NotFound);
        assert!(problem.message.contains("has gone"), "{problem}");
    }

    #[test]
    fn nobody_speaks_for_a_process_that_has_not_registered() {
        let now = Instant::now();
        let mut registry = registry(&["w"], now);
        let other = |incarnation| Leave { incarnation: Some(incarnation), ..leave("w") };
        for incarnation in [0, 2, u64::MAX] {
            for result in [registry.drain(&other(incarnation), now), registry.deregister(&other(incarnation), now)] {
                assert_eq!(result.expect_err("another process").kind, Kind::Stale);
            }
        }
        assert_eq!(state(&registry, now), WorkerState::Ready);
    }

    #[test]
    fn a_name_that_is_not_known_is_answered_with_those_that_are_near() {
        let now = Instant::now();
        let words = |ids: &[&str], wanted: &str| {
            let problem = registry(ids, now).drain(&leave(wanted), now).expect_err("nobody");
            assert_eq!((problem.kind, problem.param.as_deref()), (Kind::NotFound, Some("id")));
            problem.message
        };
        assert_eq!(words(&[], "x"), "no worker `x` is known; no worker has registered");
        assert_eq!(words(&["b", "a"], "x"), "no worker `x` is known; known are `a`, `b`");
        let many = ["gpu-1", "gpu-2", "alpha", "beta", "gpu-10"];
        assert_eq!(
            words(&many, "gpu1"),
            "no worker `gpu1` is known; of the 5 that are, nearest to it are `gpu-1`, `gpu-10`, `gpu-2`"
        );
    }

    proptest! {
        /// Whatever happens, a change begins where the one before it of the same worker ended, and the last one tells
        /// how the worker is.
        #[test]
        fn changes_of_a_worker_follow_one_another(
            steps in proptest::collection::vec((0_u8..7, 0_u64..9), 0..40),
        ) {
            let start = Instant::now();
            let (mut registry, mut now) = (Registry::new(rules()), start);
            for (deed, pause) in steps {
                now += secs(pause);
                match deed {
                    0 => drop(registry.register(worker("w", 1), Origin::Native, now)),
                    1 => drop(registry.heartbeat(&beat("w", 0), now)),
                    2 => drop(registry.drain(&leave("w"), now)),
                    3 => drop(registry.resume(&leave("w"), now)),
                    4 => drop(registry.deregister(&leave("w"), now)),
                    5 => drop(registry.drain(&own("w"), now)),
                    _ => registry.sweep(now),
                }
                registry.settle(now);
                let mut before = None;
                let changes: Vec<_> = registry.changes.newest_first().collect();
                for changed in changes.iter().rev() {
                    prop_assert_eq!(changed.from, before);
                    prop_assert_ne!(changed.from, changed.to);
                    before = changed.to;
                }
                prop_assert_eq!(registry.workers(now).first().map(|worker| worker.state), before);
            }
        }
    }
}
