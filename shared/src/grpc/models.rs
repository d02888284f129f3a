//! What a worker serves.

use super::{Malformed, proto};
use crate::control::{Capacity, ModelCard, ModelKind};

impl From<ModelCard> for proto::ModelCard {
    fn from(ModelCard { name, kind, context_length, capacity, revision }: ModelCard) -> Self {
        let kind = match kind {
            None => proto::ModelKind::Unspecified,
            Some(ModelKind::Generate) => proto::ModelKind::Generate,
            Some(ModelKind::Embed) => proto::ModelKind::Embed,
            Some(ModelKind::SparseEmbed) => proto::ModelKind::SparseEmbed,
            Some(ModelKind::Rerank) => proto::ModelKind::Rerank,
            Some(ModelKind::Classify) => proto::ModelKind::Classify,
            Some(ModelKind::Moderate) => proto::ModelKind::Moderate,
            Some(ModelKind::Entities) => proto::ModelKind::Entities,
            Some(ModelKind::Tensor) => proto::ModelKind::Tensor,
        };
        let capacity = capacity.map(|Capacity { running, waiting }| proto::Capacity { running, waiting });
        Self { name, kind: kind.into(), context_length, capacity, revision }
    }
}

impl TryFrom<proto::ModelCard> for ModelCard {
    type Error = Malformed;

    fn try_from(card: proto::ModelCard) -> Result<Self, Malformed> {
        let proto::ModelCard { name, kind, context_length, capacity, revision } = card;
        let kind = match proto::ModelKind::try_from(kind) {
            Ok(proto::ModelKind::Unspecified) => None,
            Ok(proto::ModelKind::Generate) => Some(ModelKind::Generate),
            Ok(proto::ModelKind::Embed) => Some(ModelKind::Embed),
            Ok(proto::ModelKind::SparseEmbed) => Some(ModelKind::SparseEmbed),
            Ok(proto::ModelKind::Rerank) => Some(ModelKind::Rerank),
            Ok(proto::ModelKind::Classify) => Some(ModelKind::Classify),
            Ok(proto::ModelKind::Moderate) => Some(ModelKind::Moderate),
            Ok(proto::ModelKind::Entities) => Some(ModelKind::Entities),
            Ok(proto::ModelKind::Tensor) => Some(ModelKind::Tensor),
            Err(_) => return Err(Malformed::unknown("kind", kind)),
        };
        let capacity = capacity.map(|proto::Capacity { running, waiting }| Capacity { running, waiting });
        Ok(Self { name, kind, context_length, capacity, revision })
    }
}
