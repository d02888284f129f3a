//! What sentence-transformers notes in a folder: modules, poolings, prompts, the longest text.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::super::ModelError;
use super::super::super::files::ModelFiles;
use super::super::number;
use super::task::{Dense, StepPlan};
use crate::encoder::head::dense::{Activation, DenseShape};
use crate::encoder::head::splade::{Gather, SpladeHead};
use crate::encoder::pooling::Pooling;

/// Poolings in the order in which sentence-transformers puts their vectors together, by the name of their flag and their
/// own.
const POOLINGS: [(&str, &str, Pooling); 6] = [
    ("cls_token", "cls", Pooling::Cls),
    ("max_tokens", "max", Pooling::Max),
    ("mean_tokens", "mean", Pooling::Mean),
    ("mean_sqrt_len_tokens", "mean_sqrt_len", Pooling::MeanSqrtLength),
    ("weightedmean_tokens", "weightedmean", Pooling::WeightedMean),
    ("lasttoken", "lasttoken", Pooling::Last),
];

/// What may be put before a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompts {
    /// Each by its name.
    pub by_name: BTreeMap<String, String>,
    /// The name of the one that is put there when a request names none.
    pub default: Option<String>,
}

/// What sentence-transformers notes in a folder.
#[derive(Debug, Default)]
pub(super) struct Sentence {
    /// Whether it notes anything.
    pub(super) is_one: bool,
    /// The folder's modules in their order; absent where it does not list them.
    pub(super) modules: Option<Vec<Module>>,
    pub(super) prompts: Prompts,
    pub(super) max_tokens: Option<usize>,
    pub(super) lower_case: bool,
}

/// A module of a folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// The name of its class, without its path.
    pub(super) class: String,
    /// The folder with its configuration.
    pub(super) folder: String,
}

impl Sentence {
    pub(super) fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        let modules = modules(files)?;
        let settings = files.read_json("sentence_bert_config.json")?;
        let flag = |name: &str| settings.as_ref().and_then(|settings| settings.get(name)?.as_bool()) == Some(true);
        Ok(Self {
            is_one: modules.is_some() || settings.is_some(),
            prompts: prompts(files)?,
            max_tokens: number(settings.as_ref(), "/max_seq_length").filter(|&tokens| tokens > 0),
            lower_case: flag("do_lower_case"),
            modules,
        })
    }

    /// The module of a class.
    pub(super) fn module(&self, class: &str) -> Option<&Module> {
        self.modules.as_ref()?.iter().find(|module| module.class == class)
    }

    /// Poolings and what follows them. Where the folder lists no modules, it says no more than its poolings; unit vectors
    /// are what nearly all such models give.
    pub(super) fn steps(&self, files: &ModelFiles) -> Result<(Vec<Pooling>, Vec<StepPlan>), ModelError> {
        let Some(modules) = &self.modules else {
            return Ok((self.poolings(files, "1_Pooling")?, vec![StepPlan::Normalise]));
        };
        let (mut poolings, mut steps) = (None, Vec::new());
        for module in modules {
            match (module.class.as_str(), &poolings) {
                ("Transformer" | "Dropout", _) => {}
                ("Pooling", None) => poolings = Some(self.poolings(files, &module.folder)?),
                ("Dense", Some(_)) => steps.push(StepPlan::Dense(dense(files, &module.folder)?)),
                ("Normalize", _) => steps.push(StepPlan::Normalise),
                ("Dense", None) => {
                    return Err(refused(
                        files,
                        "a Dense module stands before Pooling, where it would act on every token",
                    ));
                }
                (class, _) => {
                    let known = "Transformer, Pooling, Dense, Normalize, Dropout, MLMTransformer and SpladePooling";
                    return Err(refused(
                        files,
                        &format!("muster knows no module `{class}`, or not at this place; it knows {known}"),
                    ));
                }
            }
        }
        // Without a module for it, the graph pools by itself.
        Ok((poolings.unwrap_or_else(|| vec![Pooling::Mean]), steps))
    }

    /// The modules that scale the vector, of a graph that has done all else.
    pub(super) fn normalises(&self) -> bool {
        self.modules.is_none() || self.module("Normalize").is_some()
    }

    fn poolings(&self, files: &ModelFiles, folder: &str) -> Result<Vec<Pooling>, ModelError> {
        let name = config_of(folder);
        let Some(config) = files.read_json(&name)? else { return Ok(vec![Pooling::Mean]) };
        let malformed = |reason: String| ModelError::Malformed { file: files.describe(&name), reason };
        if config.get("include_prompt") == Some(&Value::Bool(false)) && !self.prompts.are_empty() {
            return Err(malformed(
                "include_prompt is false: pooling without the prompt's tokens is not supported".to_owned(),
            ));
        }
        let chosen = chosen_poolings(&config).map_err(malformed)?;
        if chosen.is_empty() {
            let flags = POOLINGS.map(|(flag, ..)| format!("pooling_mode_{flag}")).join(", ");
            return Err(malformed(format!("it chooses no pooling: one of {flags} must be true")));
        }
        Ok(chosen)
    }
}

impl Prompts {
    /// Whether nothing is ever put before a text.
    pub fn are_empty(&self) -> bool {
        self.by_name.values().all(String::is_empty)
    }
}

/// Older files have a flag for each pooling, newer ones name one or several.
fn chosen_poolings(config: &Value) -> Result<Vec<Pooling>, String> {
    let named: Vec<&Value> = match config.get("pooling_mode") {
        Some(Value::Array(several)) => several.iter().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let is = |value: &Value, flag: &str, name: &str| {
        value.as_str().is_some_and(|value| value.eq_ignore_ascii_case(name) || value.eq_ignore_ascii_case(flag))
    };
    if let Some(stranger) = named.iter().find(|value| !POOLINGS.iter().any(|(flag, name, _)| is(value, flag, name))) {
        let known = POOLINGS.map(|(_, name, _)| name).join(", ");
        return Err(format!("pooling_mode is {stranger}, which is none of {known}"));
    }
    let on = |flag: &str| config.get(format!("pooling_mode_{flag}")).and_then(Value::as_bool) == Some(true);
    let chosen = POOLINGS.iter().filter(|(flag, name, _)| match named[..] {
        [] => on(flag),
        _ => named.iter().any(|value| is(value, flag, name)),
    });
    Ok(chosen.map(|&(_, _, pooling)| pooling).collect())
}

fn dense(files: &ModelFiles, folder: &str) -> Result<Dense, ModelError> {
    let name = config_of(folder);
    let missing = || ModelError::FileMissing {
        file: files.describe(&name),
        expected: "modules.json lists the layer, and it tells the layer's sizes".to_owned(),
    };
    let config = files.read_json(&name)?.ok_or_else(missing)?;
    let malformed = |reason: String| ModelError::Malformed { file: files.describe(&name), reason };
    let size = |field: &str| {
        number(Some(&config), &format!("/{field}"))
            .filter(|&size| size > 0)
            .ok_or_else(|| malformed(format!("{field} is not a number above 0")))
    };
    for (field, usual) in [("module_input_name", "sentence_embedding"), ("module_output_name", "sentence_embedding")] {
        if let Some(other) = config.get(field).and_then(Value::as_str).filter(|&name| name != usual) {
            return Err(malformed(format!("{field} is `{other}`; a layer behind pooling has `{usual}`")));
        }
    }
    let shape = DenseShape {
        inputs: size("in_features")?,
        outputs: size("out_features")?,
        bias: config.get("bias").and_then(Value::as_bool).unwrap_or(true),
        activation: activation(&config).map_err(malformed)?,
    };
    Ok(Dense { folder: folder.to_owned(), shape })
}

fn activation(config: &Value) -> Result<Activation, String> {
    // Without a word of it, sentence-transformers takes the hyperbolic tangent.
    let name = config.get("activation_function").and_then(Value::as_str).unwrap_or("Tanh");
    match class(name) {
        "Tanh" => Ok(Activation::Tanh),
        "Identity" => Ok(Activation::Identity),
        other => Err(format!("activation_function is `{other}`; muster knows Tanh and Identity")),
    }
}

/// The head of a folder that lists a `SpladePooling`.
pub(super) fn splade(files: &ModelFiles, module: &Module) -> Result<SpladeHead, ModelError> {
    let name = config_of(&module.folder);
    let config = files.read_json(&name)?.unwrap_or_default();
    let word = |field: &str, usual: &'static str| match config.get(field) {
        Some(value) if !value.is_null() => value.as_str().unwrap_or_default().to_owned(),
        _ => usual.to_owned(),
    };
    let unknown = |field: &str, value: &str, known: &str| ModelError::Malformed {
        file: files.describe(&name),
        reason: format!("{field} is `{value}`; it must be {known}"),
    };
    let gather = match word("pooling_strategy", "max").as_str() {
        "max" => Gather::Max,
        "sum" => Gather::Sum,
        other => return Err(unknown("pooling_strategy", other, "max or sum")),
    };
    let twice = match word("activation_function", "relu").as_str() {
        "relu" => false,
        "log1p_relu" => true,
        other => return Err(unknown("activation_function", other, "relu or log1p_relu")),
    };
    Ok(SpladeHead { gather, twice })
}

fn modules(files: &ModelFiles) -> Result<Option<Vec<Module>>, ModelError> {
    let Some(listed) = files.read_json("modules.json")? else { return Ok(None) };
    let malformed = || ModelError::Malformed {
        file: files.describe("modules.json"),
        reason: "it must be a list of modules, each with a `type` and a `path`".to_owned(),
    };
    let module = |module: &Value| {
        let text = |field: &str| module.get(field).and_then(Value::as_str);
        Some(Module { class: class(text("type")?).to_owned(), folder: text("path")?.to_owned() })
    };
    let modules = listed.as_array().ok_or_else(malformed)?.iter().map(module);
    modules.collect::<Option<Vec<_>>>().ok_or_else(malformed).map(Some)
}

fn prompts(files: &ModelFiles) -> Result<Prompts, ModelError> {
    const FILE: &str = "config_sentence_transformers.json";
    let Some(config) = files.read_json(FILE)? else { return Ok(Prompts::default()) };
    let malformed = |reason: String| ModelError::Malformed { file: files.describe(FILE), reason };
    let mut by_name = BTreeMap::new();
    for (name, prompt) in config.get("prompts").and_then(Value::as_object).into_iter().flatten() {
        let prompt = match prompt {
            Value::String(prompt) => prompt.clone(),
            Value::Null => String::new(),
            _ => return Err(malformed(format!("prompt `{name}` is not a text"))),
        };
        by_name.insert(name.clone(), prompt);
    }
    let default = config.get("default_prompt_name").and_then(Value::as_str).map(str::to_owned);
    if let Some(name) = default.as_ref().filter(|name| !by_name.contains_key(*name)) {
        let there = by_name.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(malformed(format!("default_prompt_name is `{name}`, and its prompts are {there}")));
    }
    Ok(Prompts { by_name, default })
}

/// The class of a Python path: `Pooling` of `sentence_transformers.models.Pooling`.
pub(super) fn class(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn config_of(folder: &str) -> String {
    if folder.is_empty() { "config.json".to_owned() } else { format!("{folder}/config.json") }
}

fn refused(files: &ModelFiles, reason: &str) -> ModelError {
    ModelError::UnknownLayout { file: files.describe("modules.json"), reason: reason.to_owned() }
}
