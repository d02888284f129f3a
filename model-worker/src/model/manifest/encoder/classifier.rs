//! Models that judge: their classes, and how their numbers become scores.

use serde_json::Value;

use super::super::super::ModelError;
use super::super::number;
use super::io::Output;
use super::sentence::class;
use super::{Facts, Task};

/// Classes of a configuration that names none: what transformers takes then, and does not write down.
const USUAL_CLASSES: usize = 2;

/// What a model is for that gives numbers for the whole text.
pub(super) fn of_texts(facts: &Facts<'_>, output: &Output) -> Result<Task, ModelError> {
    let labels = labels(facts, output)?;
    let config = facts.configs.config.as_ref();
    let problem = config.and_then(|config| config.get("problem_type")?.as_str());
    Ok(match (problem, labels.len()) {
        (Some("multi_label_classification"), _) => Task::Classify { labels, multi_label: true },
        (_, 1) => Task::Rerank { logistic: is_logistic(facts)? },
        _ => Task::Classify { labels, multi_label: false },
    })
}

/// What a model is for that gives numbers for each token.
pub(super) fn of_tokens(facts: &Facts<'_>, output: &Output) -> Result<Task, ModelError> {
    Ok(Task::Entities { labels: labels(facts, output)? })
}

/// Whether the configuration names classes.
pub(super) fn names_classes(facts: &Facts<'_>) -> bool {
    facts.configs.config.as_ref().is_some_and(|config| config.get("id2label").is_some_and(Value::is_object))
}

/// Names of the classes, in the order of the graph's numbers.
fn labels(facts: &Facts<'_>, output: &Output) -> Result<Vec<String>, ModelError> {
    let config = facts.configs.config.as_ref();
    let Some(named) = config.and_then(|config| config.get("id2label")?.as_object()) else {
        let count = number(config, "/num_labels").or(output.width).unwrap_or(USUAL_CLASSES);
        return Ok((0..count).map(|index| format!("LABEL_{index}")).collect());
    };
    let label = |index: usize| named.get(&index.to_string())?.as_str().map(str::to_owned);
    (0..named.len()).map(label).collect::<Option<Vec<_>>>().filter(|labels| !labels.is_empty()).ok_or_else(|| {
        ModelError::Malformed {
            file: facts.files.describe("config.json"),
            reason: "id2label must give a name to each number from 0 on".to_owned(),
        }
    })
}

/// Whether a cross-encoder's number goes through the logistic function, as it does unless the configuration says not.
fn is_logistic(facts: &Facts<'_>) -> Result<bool, ModelError> {
    let stated = facts.configs.config.as_ref().and_then(|config| {
        let newer = config.pointer("/sentence_transformers/activation_fn").and_then(Value::as_str);
        newer.or_else(|| config.get("sbert_ce_default_activation_function")?.as_str())
    });
    match stated.map(class) {
        None | Some("Sigmoid") => Ok(true),
        Some("Identity") => Ok(false),
        Some(other) => Err(ModelError::Malformed {
            file: facts.files.describe("config.json"),
            reason: format!("the activation function of its score is `{other}`; muster knows Sigmoid and Identity"),
        }),
    }
}
