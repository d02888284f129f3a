//! Models of the Hugging Face hub: fetches what a model needs into the cache that Python's `huggingface_hub` uses too.
//!
//! * [`HubModel`] is a repository and a revision as users write them.
//! * `api` asks the hub, `download` fetches contents, `cache` knows where they lie.
//! * `needs` says which files of a repository a model needs.
//!
//! Everything here blocks, as the loading of models does.

mod api;
mod cache;
mod download;
mod error;
mod needs;

use std::fmt;
use std::path::PathBuf;

use muster_shared::secret::Secret;

use crate::model::ModelError;
use crate::model::files::{GraphSource, ModelFiles};
use crate::model::manifest::choose_graph;
use crate::model::onnx::graph::GraphFacts;
use api::Api;
use cache::RepoCache;
use download::Downloads;
pub use error::HubError;
use needs::Needs;

/// The revision of a model whose user names none.
const MAIN: &str = "main";

/// Where models of the hub come from and go to.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The hub's base URL.
    pub endpoint: String,
    /// The folder with `models--ORG--NAME` in it.
    pub cache: Option<PathBuf>,
    /// Shown to the hub, and to nobody else.
    pub token: Option<Secret>,
    /// Use only what is in the cache.
    pub offline: bool,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self { endpoint: "https://huggingface.co".to_owned(), cache: None, token: None, offline: false }
    }
}

/// A repository of the hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `ORG/NAME`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl HubModel {
    /// Reads `ORG/NAME` or `ORG/NAME@REVISION`; `None` when the text is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (organisation, name) = id.split_once('/')?;
        let is_name = |name: &str| cache::is_plain(name) && !name.contains("--") && !name.contains("..");
        let plain_revision = revision.split('/').all(cache::is_plain);
        (is_name(organisation) && is_name(name) && plain_revision)
            .then(|| Self { id: id.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            MAIN => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

/// Takes the bytes that are there and the bytes that are wanted.
pub type Observe<'a> = dyn Fn(u64, u64) + 'a;

/// A model's files in the cache.
#[derive(Debug, Clone)]
pub struct Fetched<'a> {
    /// The files.
    pub files: ModelFiles,
    /// The variant that is still to be chosen among them; a variant that is a folder of the repository is used up.
    pub variant: Option<&'a str>,
}

/// Sees to it that the files of a model are in the cache.
///
/// Without a connection the cache has to do, with a warning.
///
/// # Errors
/// See [`HubError`].
pub fn fetch<'a>(
    config: &HubConfig,
    model: &HubModel,
    variant: Option<&'a str>,
    observe: &Observe<'_>,
) -> Result<Fetched<'a>, HubError> {
    let cache = RepoCache::new(config.cache.as_deref().ok_or(HubError::NoCache)?, model);
    if config.offline {
        return from_cache(config, &cache, model, variant);
    }
    match from_hub(config, &cache, model, variant, observe) {
        Err(HubError::Unreachable { endpoint, reason, cache: folder }) => {
            match from_cache(config, &cache, model, variant) {
                Ok(fetched) => {
                    tracing::warn!(%model, endpoint, reason, "the hub cannot be reached; using what is in the cache");
                    Ok(fetched)
                }
                Err(_) => Err(HubError::Unreachable { endpoint, reason, cache: folder }),
            }
        }
        other => other,
    }
}

fn from_hub<'a>(
    config: &HubConfig,
    cache: &RepoCache,
    model: &HubModel,
    variant: Option<&'a str>,
    observe: &Observe<'_>,
) -> Result<Fetched<'a>, HubError> {
    let api = Api::new(config, model);
    let repository = api.repository()?;
    let commit = &repository.commit;
    let needs = Needs::new(config, model, repository.files, variant)?;
    let mut downloads = Downloads::new(&api, cache, commit, observe);
    let fetched = assemble(cache, commit, &needs, |names| {
        if let Some(missing) = names.iter().find(|name| !needs.has(name)) {
            return Err(HubError::FileMissing { id: model.id.clone(), file: missing.clone() });
        }
        downloads.get(names)
    })?;
    // Noted last: a revision never leads to a commit that is not all there.
    if let Err(error) = cache.note_commit(&model.revision, commit) {
        tracing::warn!(%model, error = %muster_shared::problem::chain(&error), "cannot note the revision");
    }
    Ok(fetched)
}

fn from_cache<'a>(
    config: &HubConfig,
    cache: &RepoCache,
    model: &HubModel,
    variant: Option<&'a str>,
) -> Result<Fetched<'a>, HubError> {
    let not_cached =
        |file: &str| HubError::NotCached { model: model.to_string(), file: file.to_owned(), cache: cache.root.clone() };
    let commit = cache.commit(&model.revision).ok_or_else(|| not_cached("every file"))?;
    let needs = Needs::new(config, model, cache.files(&commit), variant).map_err(|error| {
        if matches!(error, HubError::NoOnnx { .. }) { not_cached("every ONNX graph") } else { error }
    })?;
    if !needs.has(&needs.path("tokenizer.json")) {
        return Err(not_cached("tokenizer.json"));
    }
    assemble(cache, &commit, &needs, |names| match names.iter().find(|name| !needs.has(name)) {
        Some(missing) => Err(not_cached(missing)),
        None => Ok(()),
    })
}

/// Gets a model's files one after the other, since each says what comes next: the configuration names the graph, the
/// graph its weights.
fn assemble<'a>(
    cache: &RepoCache,
    commit: &str,
    needs: &Needs<'a>,
    mut get: impl FnMut(&[String]) -> Result<(), HubError>,
) -> Result<Fetched<'a>, HubError> {
    get(&needs.configuration())?;
    let files = ModelFiles::folder(&cache.snapshot(commit).join(&needs.folder))?;
    let graph = choose_graph(&files, &needs.graphs(), needs.variant)?;
    let mut weights = needs.usual_weights(&graph);
    weights.insert(0, needs.path(&graph));
    get(&weights)?;
    let folder = graph.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let named = external_data(&files, &graph)?.into_iter().map(|location| needs.path(&format!("{folder}{location}")));
    let named: Vec<String> = named.collect();
    get(&named)?;
    weights.iter().chain(&named).for_each(|name| cache.own(commit, name));
    Ok(Fetched { files, variant: needs.variant })
}

/// Where a graph says its weights are; places that lead elsewhere are left to the check when it is loaded.
fn external_data(files: &ModelFiles, graph: &str) -> Result<Vec<String>, ModelError> {
    let GraphSource::File(path) = files.graph(graph)? else { return Ok(Vec::new()) };
    let bytes = std::fs::read(&path).map_err(|source| ModelError::Read { file: files.describe(graph), source })?;
    let facts = GraphFacts::read(&bytes);
    let facts = facts.map_err(|reason| ModelError::Malformed { file: files.describe(graph), reason })?;
    let places = facts.external_data.into_iter().map(|place| place.trim_start_matches("./").to_owned());
    Ok(places.filter(|place| needs::is_inside(place)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_told_from_folders_by_their_form() {
        let parsed = |text| HubModel::parse(text).map(|model| (model.id, model.revision));
        let pair = |id: &str, revision: &str| Some((id.to_owned(), revision.to_owned()));
        assert_eq!(parsed("org/name"), pair("org/name", "main"));
        assert_eq!(parsed("Org-1/name.v2@refs/pr/3"), pair("Org-1/name.v2", "refs/pr/3"));
        for text in [
            "name",
            "./name",
            "../name",
            "/org/name",
            "org/name/more",
            "org/",
            "/name",
            "org/na me",
            "~/name",
            "org/..",
            "org/a..b",
            "org/a--b",
            "org/name@",
            "org/name@../x",
            "org/name@a//b",
            "C:/name",
            "",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
        assert_eq!(HubModel::parse("a/b@v1").expect("a model").to_string(), "a/b@v1");
        assert_eq!(HubModel::parse("a/b").expect("a model").to_string(), "a/b");
    }
}
