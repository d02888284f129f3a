//! What is known of one model.

use std::sync::Arc;

use muster_shared::control::{ModelCard, ModelKind};
use uuid::Uuid;

use crate::metrics::ModelMetrics;

/// A model that is served, as far as the gateway must know.
#[derive(Debug)]
pub(crate) struct Model {
    /// Its name.
    pub(crate) name: Arc<str>,
    /// What it can be asked for, where known.
    pub(crate) kind: Option<ModelKind>,
    /// Whether a worker takes a client's request as it is.
    pub(crate) passes_through: bool,
    /// Whether all of its workers speak FastChat's protocol.
    pub(crate) only_fastchat: bool,
    /// The card of all of its workers, in what their answers depend on; absent where one does not tell, or serves something
    /// else.
    revision: Option<(String, Option<u32>)>,
    /// Changes whenever something of the above does.
    since: Uuid,
    /// Its tokens.
    pub(crate) metrics: ModelMetrics,
}

impl Model {
    /// What is known of it now; `transports`: see [`Model::passes_through`] and [`Model::only_fastchat`].
    pub(super) fn new(
        name: &str,
        kind: Option<ModelKind>,
        (passes_through, only_fastchat): (bool, bool),
        revision: Option<(String, Option<u32>)>,
    ) -> Self {
        let (since, metrics) = (Uuid::now_v7(), ModelMetrics::new(name));
        Self { name: name.into(), kind, passes_through, only_fastchat, revision, since, metrics }
    }

    /// By what answers of this model are kept; `None` where its next one may be another.
    ///
    /// It is new with every change of what the workers serve. So an answer that a new worker gave before it was known here is
    /// not found any more when an old one comes back.
    pub(crate) fn answers(&self) -> Option<Uuid> {
        self.revision.is_some().then_some(self.since)
    }

    /// Whether nothing has changed.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let known = |model: &Self| (model.kind, model.passes_through, model.only_fastchat);
        known(self) == known(other) && self.revision == other.revision
    }
}

/// Whether two workers give the same answers under one name: of the same files, and of the same length at most.
pub(super) fn answers_alike(one: &ModelCard, other: &ModelCard) -> bool {
    (&one.revision, one.context_length) == (&other.revision, other.context_length)
}
