//! What models can be asked for, and what they say to the rest.

use muster_shared::control::ModelKind;
use muster_shared::problem::Problem;

/// What a request wants of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// Text, token by token.
    Generate,
    /// Vectors, dense or sparse.
    Embed,
    /// How well texts answer a query.
    Rerank,
    /// Of which classes texts are.
    Classify,
    /// Which parts of texts are names of something.
    Entities,
}

impl Ability {
    /// Whether models of a kind can do it.
    pub fn is_of(self, kind: ModelKind) -> bool {
        match self {
            Self::Generate => kind == ModelKind::Generate,
            Self::Embed => matches!(kind, ModelKind::Embed | ModelKind::SparseEmbed),
            Self::Rerank => kind == ModelKind::Rerank,
            Self::Classify => matches!(kind, ModelKind::Classify | ModelKind::Moderate),
            Self::Entities => kind == ModelKind::Entities,
        }
    }

    /// What a model does not do that lacks it.
    fn lacking(self) -> &'static str {
        match self {
            Self::Generate => "generate any",
            Self::Embed => "embed any",
            Self::Rerank => "rerank any",
            Self::Classify => "classify any",
            Self::Entities => "find entities in any",
        }
    }
}

/// What a model of a kind does.
pub fn does(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::Generate => "generates texts",
        ModelKind::Embed => "embeds texts",
        ModelKind::SparseEmbed => "embeds texts as sparse vectors",
        ModelKind::Rerank => "reranks texts",
        ModelKind::Classify => "classifies texts",
        ModelKind::Moderate => "moderates texts",
        ModelKind::Entities => "finds entities in texts",
        ModelKind::Tensor => "takes tensors instead of texts",
    }
}

/// The refusal of a request that a model cannot serve.
pub(super) fn unable(name: &str, kind: ModelKind, wanted: Ability) -> Problem {
    let (does, lacking) = (does(kind), wanted.lacking());
    let message = format!("model `{name}` {does} and does not {lacking}; GET /v1/models tells what each can do");
    Problem::invalid("model", message)
}
