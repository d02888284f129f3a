//! What a worker serves.

use super::{Malformed, proto};
use crate::control::{Capacity, ModelCard, ModelKind};

impl From<ModelCard> for proto::ModelCard {
    fn from(ModelCard { name, kind, context_length, capacity }: ModelCard) -> Self {
        let kind = match kind {
            None => proto::ModelKind::Unspecified,
            Some(ModelKind::Generate) => proto::ModelKind::Generate,
            Some(ModelKind::Embed) => proto::ModelKind::Embed,
        };
        let capacity = capacity.map(|Capacity { running, waiting }| proto::Capacity { running, waiting });
        Self { name, kind: kind.into(), context_length, capacity }
    }
}

impl TryFrom<proto::ModelCard> for ModelCard {
    type Error = Malformed;

    fn try_from(card: proto::ModelCard) -> Result<Self, Malformed> {
        let proto::ModelCard { name, kind, context_length, capacity } = card;
        let kind = match proto::ModelKind::try_from(kind) {
            Ok(proto::ModelKind::Unspecified) => None,
            Ok(proto::ModelKind::Generate) => Some(ModelKind::Generate),
            Ok(proto::ModelKind::Embed) => Some(ModelKind::Embed),
            Err(_) => return Err(Malformed::unknown("kind", kind)),
        };
        let capacity = capacity.map(|proto::Capacity { running, waiting }| Capacity { running, waiting });
        Ok(Self { name, kind, context_length, capacity })
    }
}
