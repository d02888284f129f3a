//! Which files of a repository a model needs: repositories hold a dozen variants, and one is served.

use std::path::{Component, Path};

use super::{HubConfig, HubError, HubModel};

/// Configuration and tokenizer, in the model's folder.
const CONFIGURATION: [&str; 11] = [
    "genai_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];
/// Files that an error shows.
const SHOWN: usize = 12;

/// A repository's files, seen by what a model needs of them.
#[derive(Debug)]
pub(super) struct Needs<'a> {
    files: Vec<String>,
    /// The model's folder in the repository; empty for its root.
    pub(super) folder: String,
    /// The variant to choose in the folder.
    pub(super) variant: Option<&'a str>,
}

impl<'a> Needs<'a> {
    /// Finds the model's folder: the root, or that of one of the models that ONNX Runtime GenAI's repositories hold.
    ///
    /// # Errors
    /// [`HubError::NoOnnx`], [`HubError::SeveralModels`].
    pub(super) fn new(
        config: &HubConfig,
        model: &HubModel,
        mut files: Vec<String>,
        variant: Option<&'a str>,
    ) -> Result<Self, HubError> {
        files.retain(|name| is_inside(name));
        let folders = model_folders(&files);
        let in_root = folders.is_empty() || files.iter().any(|name| is_graph(name) && is_near(name));
        if in_root && files.iter().any(|name| is_graph(name)) {
            return Ok(Self { files, folder: String::new(), variant });
        }
        let id = model.id.clone();
        if folders.is_empty() {
            let found = some(files.iter().map(String::as_str));
            return Err(HubError::NoOnnx { id, endpoint: config.endpoint.clone(), found });
        }
        match choose_folder(&folders, variant) {
            Some(folder) => Ok(Self { folder: folder.to_owned(), files, variant: None }),
            None => Err(HubError::SeveralModels { id, folders: folders.join(", ") }),
        }
    }

    /// Whether the repository has a file.
    pub(super) fn has(&self, path: &str) -> bool {
        self.files.iter().any(|file| file == path)
    }

    /// The path in the repository of a file of the model's folder.
    pub(super) fn path(&self, name: &str) -> String {
        if self.folder.is_empty() { name.to_owned() } else { format!("{}/{name}", self.folder) }
    }

    /// Names in the model's folder.
    fn names(&self) -> impl Iterator<Item = &str> {
        let inside = |path| match self.folder.as_str() {
            "" => Some(path),
            folder => str::strip_prefix(path, folder)?.strip_prefix('/'),
        };
        self.files.iter().map(String::as_str).filter_map(inside)
    }

    /// Paths of everything but graphs and their weights.
    pub(super) fn configuration(&self) -> Vec<String> {
        let wanted = self.names().filter(|name| match name.split_once('/') {
            None => CONFIGURATION.contains(name),
            Some((folder, "config.json")) => is_module(folder),
            // A few hundred KiB, of which no graph knows.
            Some((folder, "model.safetensors")) => is_module(folder) && folder.ends_with("_Dense"),
            Some(_) => false,
        });
        wanted.map(|name| self.path(name)).collect()
    }

    /// Names of the graphs, in the model's folder.
    pub(super) fn graphs(&self) -> Vec<String> {
        self.names().filter(|name| is_graph(name)).map(str::to_owned).collect()
    }

    /// Paths of the weights that lie beside a graph under the names that exporters give them.
    pub(super) fn usual_weights(&self, graph: &str) -> Vec<String> {
        let rest = |name: &str| name.strip_prefix(graph).is_some_and(is_weights);
        self.names().filter(|name| rest(name)).map(|name| self.path(name)).collect()
    }
}

/// Whether a path stays below the folder it is relative to.
pub(super) fn is_inside(path: &str) -> bool {
    // Empty parts and dots mean nothing to the system, but are counted where a link is made.
    path.split('/').all(|part| !part.is_empty() && part != ".")
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether `rest` makes a graph's name that of its weights: `_data`, `_data_1`, `.data`.
fn is_weights(rest: &str) -> bool {
    let numbered = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    rest == ".data" || rest == "_data" || rest.strip_prefix("_data_").is_some_and(numbered)
}

fn is_graph(name: &str) -> bool {
    name.ends_with(".onnx")
}

/// Whether a file lies where graphs of the root are looked for.
fn is_near(name: &str) -> bool {
    !name.strip_prefix("onnx/").unwrap_or(name).contains('/')
}

/// Whether a folder is a module of a sentence-transformers model: `1_Pooling`.
fn is_module(folder: &str) -> bool {
    folder.split_once('_').is_some_and(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Folders below the root that hold a model of ONNX Runtime GenAI.
fn model_folders(files: &[String]) -> Vec<&str> {
    files.iter().filter_map(|name| name.strip_suffix("/genai_config.json")).collect()
}

/// The folder that a variant names, by its whole path or its last part; without one, the only one for processors.
fn choose_folder<'f>(folders: &[&'f str], variant: Option<&str>) -> Option<&'f str> {
    let fits = |folder: &&&str| match variant {
        Some(variant) => **folder == variant || folder.ends_with(&format!("/{variant}")),
        None => folders.len() == 1 || folder.contains("cpu"),
    };
    let mut fitting = folders.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(folder), None) => Some(folder),
        _ => None,
    }
}

/// Some names, for people.
fn some<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let all = names.len();
    let shown = names.take(SHOWN).collect::<Vec<_>>().join(", ");
    match all {
        0 => "no files".to_owned(),
        1..=SHOWN => shown,
        _ => format!("{shown} and {} more", all - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs<'a>(files: &[&str], variant: Option<&'a str>) -> Result<Needs<'a>, HubError> {
        let model = HubModel::parse("org/name").expect("a model");
        Needs::new(&HubConfig::default(), &model, files.iter().map(|name| (*name).to_owned()).collect(), variant)
    }

    #[test]
    fn of_many_variants_one_is_needed_with_its_own_weights() {
        let files = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "0_Transformer/model.safetensors",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "other/config.json",
            "../config.json",
            "onnx/model.onnx",
            "onnx/model.onnx_data",
            "onnx/model_q4.onnx",
            "onnx/model_q4.onnx_data",
            "onnx/model_q4.onnx_data_1",
            "onnx/model_q4.onnx_datasheet",
            "model.safetensors",
        ];
        let needs = needs(&files, None).expect("a model");
        assert_eq!(
            needs.configuration(),
            [
                "config.json",
                "tokenizer.json",
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "2_Dense/model.safetensors"
            ]
        );
        assert_eq!(needs.graphs(), ["onnx/model.onnx", "onnx/model_q4.onnx"]);
        assert_eq!(needs.usual_weights("onnx/model_q4.onnx"), ["onnx/model_q4.onnx_data", "onnx/model_q4.onnx_data_1"]);
    }

    #[test]
    fn a_repository_of_several_models_wants_one_named_unless_one_is_for_processors() {
        let files = ["cuda/fp16/genai_config.json", "cpu/int4/genai_config.json", "cpu/int4/model.onnx"];
        let chosen = needs(&files, None).expect("one for processors");
        assert_eq!((chosen.folder.as_str(), chosen.graphs()), ("cpu/int4", vec!["model.onnx".to_owned()]));
        assert_eq!(chosen.configuration(), ["cpu/int4/genai_config.json"]);
        assert_eq!(needs(&files, Some("fp16")).expect("it is there").folder, "cuda/fp16");
        let files = ["cpu/a/genai_config.json", "cpu/b/genai_config.json"];
        let error = needs(&files, None).expect_err("two").to_string();
        assert!(error.contains("--variant: cpu/a, cpu/b"), "{error}");
    }

    #[test]
    fn a_repository_without_graphs_is_shown() {
        let error = needs(&["config.json", "model.safetensors"], None).expect_err("no graph").to_string();
        assert!(error.contains("config.json, model.safetensors") && error.contains("/onnx-community"), "{error}");
    }
}
