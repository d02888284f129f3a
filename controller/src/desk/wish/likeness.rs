//! What those who wait for one model have in common that find the same room.

use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;

use crate::names::{Names, Targets};
use crate::registry::{Lack, Registry, Request};

/// Those of the same likeness are all served by the same workers. Whether one is stricter than another says nothing: who
/// excludes all but paused workers is given one of these, while another is not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::desk) struct Likeness {
    alias: Option<String>,
    exact: bool,
    /// Each once, in order, as are transports.
    exclude: Vec<WorkerId>,
    transports: Vec<Transport>,
}

impl Likeness {
    /// That of a request, where the alias has been resolved that was asked for.
    pub(super) fn new(request: &Request, alias: Option<String>) -> Self {
        let Request { exact, mut exclude, mut transports, .. } = request.clone();
        exclude.sort_unstable();
        exclude.dedup();
        transports.sort_unstable();
        transports.dedup();
        Self { alias, exact, exclude, transports }
    }

    /// What there is none of for those who wait for `model`; `None`: they can be served. The same as what
    /// [`super::Wish::grant`] would come to, without granting, and without a look at any worker but those excluded.
    pub(in crate::desk) fn lack(&self, model: &str, registry: &Registry, names: &Names) -> Option<Lack> {
        let lack = |model: &str| registry.lack(model, &self.exclude, &self.transports);
        let targets = if self.exact { Targets::exactly(model) } else { names.targets_of(model) };
        let own = least(targets.iter().map(lack));
        match &self.alias {
            Some(alias) if own == Some(Lack::Worker) => {
                let others = names.stands_for(alias).into_iter().flatten();
                least(others.flat_map(|model| names.targets_of(model).iter()).map(lack))
            }
            _ => own,
        }
    }
}

/// What is lacking where any of several models will do.
fn least(lacks: impl Iterator<Item = Option<Lack>>) -> Option<Lack> {
    let mut least = Lack::Worker;
    for lack in lacks {
        match lack {
            None => return None,
            Some(Lack::Room) => least = Lack::Room,
            Some(Lack::Worker) => {}
        }
    }
    Some(least)
}
