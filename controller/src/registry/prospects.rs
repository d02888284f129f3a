//! How well a model is served, for those who choose between models.

use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;

use super::pool::Survey;
use super::{Denial, Lack, Registry, Request};
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
        let (full, open) = (ready.full() + spared.full(), ready.open + spared.open);
        match survey.lack()? {
            Lack::Worker => Some(Denial::NoWorker { excluded }),
            Lack::Room => Some(Denial::NoRoom { full, open, paused: spared.room }),
        }
    }

    /// What [`Registry::grant`] would find none of, for a request for that model at the moment; `None`: it would be
    /// granted, if the policy picks anyone. Looks at nobody but those excluded.
    pub(crate) fn lack(&self, model: &str, exclude: &[WorkerId], transports: &[Transport]) -> Option<Lack> {
        match self.pools.get(model) {
            Some(pool) => pool.prospects(&self.seats_of(model, exclude), transports).lack(),
            None => Some(Lack::Worker),
        }
    }
}
