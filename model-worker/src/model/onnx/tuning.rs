//! Sends runs to the one of two sessions of the same graph that suits the machine at the moment.
//!
//! Whether threads spin is fixed when a session is made. The first spins briefly; the second, made when other work wants
//! the processors, does not. Both map the same weights and work on the same keys and values, so answers are the same.

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Instant;

use ort::session::Session;

use super::super::ModelError;
use super::contention::{Threads, Tuner};
use super::lent::{LentSession, Number};
use super::session::Twin;

/// Which session of a [`LentSession`] spins, and which does not.
const SPINNING: usize = 0;
const SLEEPING: usize = 1;

/// Watches the machine for one model.
#[derive(Debug)]
pub(super) struct Tuning {
    tuner: Tuner,
    threads: Threads,
    second: Second,
}

/// The session that does not spin.
#[derive(Debug)]
enum Second {
    /// Not needed so far.
    Closed(Twin),
    /// On its way, from a thread of its own: runs go on meanwhile.
    Opening {
        /// Gives it.
        receiver: Receiver<Result<Session, ModelError>>,
        /// Share of waiting that it was asked for.
        share: f64,
    },
    Open,
    Failed,
}

impl Tuning {
    /// Begins to watch; `None` where the system does not tell who waits for a processor.
    pub(super) fn new(twin: Twin) -> Option<Self> {
        Some(Self { tuner: Tuner::new(Instant::now()), threads: Threads::watch()?, second: Second::Closed(twin) })
    }

    /// Looks at the machine if it is time to, and chooses the session of the next run.
    pub(super) fn choose<C: Number>(&mut self, session: &mut LentSession<C>) {
        self.receive(session);
        let now = Instant::now();
        if !self.tuner.is_due(now) {
            return;
        }
        let share = self.threads.look().share();
        let turn = self.tuner.judge(share, now);
        if let Some(share) = share {
            tracing::debug!(share, spins = self.tuner.spins(), "threads waited for a processor");
            metrics::gauge!("muster_worker_contention_ratio").set(share);
            if let Some(spins) = turn {
                self.turn(spins, share, session);
            }
        }
    }

    fn turn<C: Number>(&mut self, spins: bool, share: f64, session: &mut LentSession<C>) {
        match std::mem::replace(&mut self.second, Second::Failed) {
            Second::Closed(twin) if !spins => self.second = open(twin, share),
            Second::Open => {
                session.choose(if spins { SPINNING } else { SLEEPING });
                tell(spins, share);
                self.second = Second::Open;
            }
            other => self.second = other,
        }
    }

    /// Takes the second session if it has come.
    fn receive<C: Number>(&mut self, session: &mut LentSession<C>) {
        let Second::Opening { receiver, share } = &self.second else { return };
        self.second = match receiver.try_recv() {
            Ok(Ok(opened)) => {
                session.add(opened);
                if !self.tuner.spins() {
                    session.choose(SLEEPING);
                    tell(false, *share);
                }
                Second::Open
            }
            Ok(Err(error)) => failed(&error),
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => failed(&"its thread has ended"),
        }
    }
}

fn tell(spins: bool, share: f64) {
    let waiting = format!("{:.0} %", share * 100.0);
    if spins {
        tracing::info!(waiting, "the processors are free again: idle threads of ONNX Runtime spin briefly");
    } else {
        tracing::info!(waiting, "other work wants the processors: idle threads of ONNX Runtime sleep at once");
    }
}

fn failed(error: &dyn std::fmt::Display) -> Second {
    tracing::warn!(%error, "cannot open the graph once more: idle threads go on spinning; choose --spin off if that harms");
    Second::Failed
}

fn open(twin: Twin, share: f64) -> Second {
    let (sender, receiver) = channel();
    let opening = std::thread::Builder::new().name("second-session".to_owned()).spawn(move || {
        // Nobody listens when the model is gone by now.
        let _ = sender.send(twin.open());
    });
    match opening {
        Ok(_) => Second::Opening { receiver, share },
        Err(error) => failed(&error),
    }
}
