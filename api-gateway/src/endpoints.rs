//! At which paths models answer, and which of them are for a model of which kind.

use muster_shared::control::ModelKind;
use muster_shared::problem::Problem;

use crate::observe::Route;

impl Route {
    /// Those at which a model answers.
    pub(crate) const BUSY: [Self; 8] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Rerank,
        Self::Classify,
        Self::Moderations,
        Self::Tokenize,
        Self::Detokenize,
    ];

    /// Its paths: first the one that clients are told, then those under which other servers have the same.
    pub(crate) fn paths(self) -> &'static [&'static str] {
        match self {
            Self::Chat => &["/v1/chat/completions"],
            Self::Completions => &["/v1/completions"],
            Self::Embeddings => &["/v1/embeddings"],
            Self::Rerank => &["/v1/rerank", "/rerank", "/v2/rerank"],
            Self::Classify => &["/v1/classify", "/classify"],
            Self::Moderations => &["/v1/moderations"],
            Self::Tokenize => &["/tokenize", "/v1/tokenize"],
            Self::Detokenize => &["/detokenize", "/v1/detokenize"],
            Self::Infer => &["/v2"],
            Self::Models | Self::Inference | Self::Other | Self::Unknown => &[],
        }
    }

    /// The path that clients are told.
    pub(crate) fn path(self) -> &'static str {
        self.paths().first().copied().unwrap_or_default()
    }

    /// Where servers that speak OpenAI's API have the same: vLLM classifies at one path only.
    pub(crate) fn passed_to(self) -> &'static str {
        if self == Self::Classify { "/classify" } else { self.path() }
    }

    /// Whose path that is.
    pub(crate) fn at(path: &str) -> Option<Self> {
        Self::BUSY.into_iter().find(|route| route.paths().contains(&path))
    }
}

/// At which routes a model of a kind is asked, its tokenizer aside.
fn routes(kind: ModelKind) -> &'static [Route] {
    match kind {
        ModelKind::Generate => &[Route::Chat, Route::Completions],
        ModelKind::Embed | ModelKind::SparseEmbed => &[Route::Embeddings],
        ModelKind::Rerank => &[Route::Rerank],
        ModelKind::Classify | ModelKind::Entities => &[Route::Classify],
        ModelKind::Moderate => &[Route::Moderations, Route::Classify],
        ModelKind::Tensor => &[],
    }
}

/// The same for what takes text.
fn tokenizer(kind: ModelKind) -> &'static [Route] {
    if kind == ModelKind::Tensor { &[] } else { &[Route::Tokenize, Route::Detokenize] }
}

/// The paths at which a model of a kind can be asked.
pub(crate) fn paths(model: &str, kind: ModelKind) -> Vec<String> {
    let mut paths = main_paths(model, kind);
    paths.extend(tokenizer(kind).iter().map(|route| route.path().to_owned()));
    paths
}

fn main_paths(model: &str, kind: ModelKind) -> Vec<String> {
    match kind {
        ModelKind::Tensor => vec![format!("/v2/models/{model}/infer")],
        _ => routes(kind).iter().map(|route| route.path().to_owned()).collect(),
    }
}

/// Refuses a request at a route that is not for models of that kind.
///
/// # Errors
/// What the model is, and where to ask it.
pub(crate) fn check(model: &str, kind: ModelKind, route: Route) -> Result<(), Problem> {
    let is_tensors = kind == ModelKind::Tensor && route == Route::Infer;
    if is_tensors || routes(kind).contains(&route) || tokenizer(kind).contains(&route) {
        return Ok(());
    }
    let message = format!(
        "the model `{model}` is {}, for which {} is not; ask it at {}",
        what(kind),
        route.path(),
        main_paths(model, kind).join(" or ")
    );
    Err(Problem::invalid("model", message))
}

/// What a model of a kind is, for its users.
fn what(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::Generate => "a language model",
        ModelKind::Embed => "an embedding model",
        ModelKind::SparseEmbed => "an embedding model with sparse vectors",
        ModelKind::Rerank => "a reranker",
        ModelKind::Classify => "a classifier",
        ModelKind::Moderate => "a moderation model",
        ModelKind::Entities => "a model that finds entities",
        ModelKind::Tensor => "a model of tensors",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_to_its_route() {
        for route in Route::BUSY {
            assert!(!route.path().is_empty());
            assert!(route.paths().iter().all(|path| Route::at(path) == Some(route)), "{route:?}");
            assert_eq!(Route::at(route.passed_to()), Some(route));
        }
        assert_eq!(Route::at("/v1/models"), None);
    }

    #[test]
    fn a_model_is_asked_at_the_paths_that_it_lists_and_nowhere_else() {
        for kind in ModelKind::ALL {
            let listed = paths("m", kind);
            assert!(!listed.is_empty(), "{kind:?}");
            for route in Route::BUSY {
                let fits = listed.iter().any(|path| path == route.path());
                assert_eq!(check("m", kind, route).is_ok(), fits, "{kind:?} at {route:?}");
            }
        }
    }

    #[test]
    fn who_asks_at_the_wrong_path_hears_the_right_one() {
        let refused = |kind, route| check("m", kind, route).expect_err("refused").message;
        let message = refused(ModelKind::Embed, Route::Chat);
        let expected = "the model `m` is an embedding model, for which /v1/chat/completions is not; \
                        ask it at /v1/embeddings";
        assert_eq!(message, expected);
        assert!(refused(ModelKind::Tensor, Route::Tokenize).ends_with("/v2/models/m/infer"));
        assert!(refused(ModelKind::Moderate, Route::Rerank).ends_with("/v1/moderations or /v1/classify"));
    }
}
