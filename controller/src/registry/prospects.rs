//! How well a model is served, for those who choose between models.

use std::time::Instant;

use muster_shared::control::WorkerState;
use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;

use super::{Lack, Registry, Request};
use crate::names::Standing;

impl Registry {
    /// How well that model would be served at the moment if `request` were for it.
    ///
    /// Where there is room this looks at nobody; else at workers of the model, up to the first that is not spared.
    pub(crate) fn standing(&self, request: &Request, model: &str, now: Instant) -> Standing {
        let Some(pool) = self.pools.get(model) else { return Standing::Absent };
        let (is_live, has_room) = pool.prospects(&self.seats_of(model, &request.exclude), &request.transports);
        if has_room || !is_live {
            return if has_room { Standing::Served } else { Standing::Absent };
        }
        let is_served = pool.slots().map(|slot| &self.workers[slot]).any(|worker| {
            let state = worker.state(now);
            matches!(state, WorkerState::Ready | WorkerState::Suspect | WorkerState::Paused)
                && request.is_spoken_by(worker)
                && !request.exclude.contains(&worker.id)
        });
        if is_served { Standing::Served } else { Standing::Suspended }
    }
    /// What [`Registry::grant`] would find none of, for a request for that model at the moment; `None`: it would be
    /// granted, if the policy picks anyone. Looks at nobody but those excluded.
    pub(crate) fn lack(&self, model: &str, exclude: &[WorkerId], transports: &[Transport]) -> Option<Lack> {
        match self.pools.get(model) {
            Some(pool) => pool.lack(&self.seats_of(model, exclude), transports),
            None => Some(Lack::Worker),
        }
    }
}
