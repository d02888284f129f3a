//! How well a model is served, for those who choose between models.

use super::pool::Survey;
use super::{Denial, Registry, Request};
use crate::names::Standing;

impl Registry {
    /// How well that model would be served at the moment if `request` were for it. A look at nobody but those that the
    /// request excludes.
    pub(crate) fn standing(&self, request: &Request, model: &str) -> Standing {
        let Some(pool) = self.pools.get(model) else { return Standing::Absent };
        let survey = pool.prospects(&self.seats_of(model, &request.exclude), &request.transports);
        match (survey.ready, survey.spared) {
            (ready, spared) if ready.live + spared.live == 0 => Standing::Absent,
            (ready, spared) if ready.live + spared.live == ready.open + spared.open => Standing::Suspended,
            _ => Standing::Served,
        }
    }

    /// Why a request would be given no worker; `None` when it would be given one. A look at nobody but those that the
    /// request excludes.
    pub(crate) fn denial(&self, request: &Request) -> Option<Denial> {
        let Some(pool) = self.pools.get(&request.model) else { return Some(Denial::UnknownModel) };
        let survey = pool.prospects(&self.seats(request), &request.transports);
        let Survey { ready, spared, excluded } = survey;
        if ready.live + spared.live == 0 {
            return Some(Denial::NoWorker { excluded });
        }
        let room = if ready.live > 0 { ready.room } else { spared.room };
        let (full, open) = (ready.full() + spared.full(), ready.open + spared.open);
        (room == 0).then_some(Denial::NoRoom { full, open, paused: spared.room })
    }
}
