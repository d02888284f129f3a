//! Looks at the machine beside the runtime, and at the engines.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_shared::control::Resources;

use super::machine::Machine;
use crate::engine::EngineHandle;
use crate::metrics;
use crate::state::State;

/// Time between two looks of a worker that tells nobody.
const ALONE: Duration = Duration::from_secs(5);

/// What a worker sees of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Seen {
    /// Its machine; absent where nothing can be measured.
    pub(crate) resources: Option<Resources>,
    /// Tokens per second of all its requests together, since the last look.
    pub(crate) tokens_per_second: Option<f64>,
    /// Milliseconds from a request to its first token: a moving average of each language model, and their mean.
    pub(crate) ttft_ms: Option<f64>,
}

/// Looks whenever it is asked to.
#[derive(Debug)]
pub(crate) struct Observer {
    state: Arc<State>,
    machine: Machine,
    /// Tokens chosen up to the last look, and when that was.
    tokens: Mutex<(u64, Instant)>,
}

impl Observer {
    /// `network`: its megabits a second, where somebody knows better than the system.
    pub(crate) fn new(state: Arc<State>, network: Option<NonZeroU32>) -> Self {
        Self { state, machine: Machine::new(network), tokens: Mutex::new((0, Instant::now())) }
    }

    /// The state of the worker that it looks at.
    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Begins to measure, and looks again and again, for ever.
    pub(crate) async fn stay(&self) -> std::convert::Infallible {
        loop {
            self.look().await;
            tokio::time::sleep(ALONE).await;
        }
    }

    /// What is to be told now.
    pub(crate) async fn look(&self) -> Seen {
        let mut machine = self.machine.look().await;
        let engines = || self.state.catalog().ok().into_iter().flat_map(|catalog| catalog.engines());
        machine.kv_cache = engines().map(EngineHandle::fill).reduce(f64::max);
        metrics::resources(&machine);
        let has_engines = engines().next().is_some();
        let chosen = engines().map(EngineHandle::tokens_chosen).sum();
        let (sum, count) = engines()
            .filter_map(EngineHandle::first_token)
            .fold((0.0, 0_u32), |(sum, count), time| (sum + time.as_secs_f64(), count + 1));
        let seen = Seen {
            resources: (machine != Resources::default()).then_some(machine),
            tokens_per_second: self.rate(chosen, Instant::now()).filter(|_| has_engines),
            ttft_ms: (count > 0).then(|| sum * 1e3 / f64::from(count)),
        };
        self.state.note_seen(seen);
        seen
    }

    /// Tokens per second since the last look.
    fn rate(&self, chosen: u64, now: Instant) -> Option<f64> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, since) = std::mem::replace(&mut *tokens, (chosen, now));
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        (seconds > 0.0).then(|| chosen.saturating_sub(before) as f64 / seconds)
    }
}
