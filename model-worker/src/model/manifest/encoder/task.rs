//! What a text encoder is for, and the last step behind its graph.

use std::sync::Arc;

use muster_shared::control::ModelKind;

use super::super::super::files::ModelFiles;
use super::super::super::{EncoderOutput, ModelError};
use super::io::{Output, OutputKind, VECTORS};
use super::sentence::{self, Sentence};
use super::{Facts, classifier};
use crate::encoder::head::dense::{self, DenseShape};
use crate::encoder::head::embedding::{EmbeddingHead, Step};
use crate::encoder::head::splade::{Gather, SpladeHead};
use crate::encoder::head::{Head, Plain};
use crate::encoder::pooling::Pooling;

/// What a text encoder is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// One vector for each text.
    Embed {
        /// How the vectors of the tokens become one.
        pooling: Vec<Pooling>,
        /// What is done to it.
        steps: Vec<StepPlan>,
    },
    /// One sparse vector for each text.
    Sparse(SpladeHead),
    /// How well a text answers a query.
    Rerank {
        /// Whether the number goes through the logistic function.
        logistic: bool,
    },
    /// Of which class a text is.
    Classify {
        /// Names of the classes.
        labels: Vec<String>,
        /// Whether a text may be of several.
        multi_label: bool,
    },
    /// Which parts of a text are names of something.
    Entities {
        /// Names of the classes of tokens: `B-PER` and the like.
        labels: Vec<String>,
    },
}

/// What is done to the vector of a text, before weights are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepPlan {
    /// It goes through a layer.
    Dense(Dense),
    /// It is scaled to length 1.
    Normalise,
}

/// A layer whose weights lie in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dense {
    /// The folder, below the model's.
    pub folder: String,
    /// Its sizes.
    pub shape: DenseShape,
}

/// Finds out what a model is for: from its modules, then its output, then its architecture.
pub(super) fn read(facts: &Facts<'_>, output: &Output, sentence: &Sentence) -> Result<Task, ModelError> {
    if let Some(module) = sentence.module("SpladePooling") {
        return match output.kind {
            OutputKind::Logits | OutputKind::Unnamed => Ok(Task::Sparse(sentence::splade(facts.files, module)?)),
            _ => Err(facts.unknown(format!(
                "modules.json lists SpladePooling, which takes logits, and the graph gives `{}`; export it for the task \
                 fill-mask",
                output.name
            ))),
        };
    }
    match (output.kind, facts.architecture()) {
        (OutputKind::Finished, _) => {
            let steps = if sentence.normalises() { vec![StepPlan::Normalise] } else { Vec::new() };
            Ok(Task::Embed { pooling: vec![Pooling::Mean], steps })
        }
        (OutputKind::Vectors, _) => embed(facts, sentence),
        (_, Some("ForSequenceClassification")) => classifier::of_texts(facts, output),
        (_, Some("ForTokenClassification")) => classifier::of_tokens(facts, output),
        (_, Some("ForMaskedLM")) => Ok(Task::Sparse(SpladeHead { gather: Gather::Max, twice: false })),
        (OutputKind::Unnamed, _) => embed(facts, sentence),
        (OutputKind::Logits, architecture) => by_rank(facts, output, architecture),
    }
}

fn embed(facts: &Facts<'_>, sentence: &Sentence) -> Result<Task, ModelError> {
    if sentence.modules.is_none() {
        let graph = &facts.graph.name;
        tracing::info!(
            graph,
            "the folder has no modules.json; vectors are scaled to length 1, pooled by their mean \
                               unless 1_Pooling/config.json says otherwise"
        );
    }
    let (pooling, steps) = sentence.steps(facts.files)?;
    Ok(Task::Embed { pooling, steps })
}

/// Logits of an architecture that says nothing of them.
fn by_rank(facts: &Facts<'_>, output: &Output, architecture: Option<&str>) -> Result<Task, ModelError> {
    let is_language = architecture.is_some_and(|name| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel"));
    match output.rank {
        _ if is_language => {}
        Some(2) => return classifier::of_texts(facts, output),
        Some(3) if classifier::names_classes(facts) => return classifier::of_tokens(facts, output),
        _ => {}
    }
    Err(facts.unknown(format!(
        "it gives logits and takes no past keys and values, so that each token would read everything anew; export a \
         language model with them (task text-generation-with-past), an embedding model with one of {}, and a classifier \
         with the architecture in its config.json",
        VECTORS.join(", ")
    )))
}

impl Task {
    /// As the fleet calls it.
    pub fn kind(&self) -> ModelKind {
        match self {
            Self::Embed { .. } => ModelKind::Embed,
            Self::Sparse(_) => ModelKind::SparseEmbed,
            Self::Rerank { .. } => ModelKind::Rerank,
            Self::Classify { multi_label: true, .. } => ModelKind::Moderate,
            Self::Classify { multi_label: false, .. } => ModelKind::Classify,
            Self::Entities { .. } => ModelKind::Entities,
        }
    }

    /// The last step behind the graph, checked against what the graph gave for a text.
    pub(super) fn head(
        &self,
        files: &ModelFiles,
        graph: &str,
        output: &EncoderOutput,
    ) -> Result<Arc<dyn Head>, ModelError> {
        let unfit = |reason: String| ModelError::UnknownLayout { file: graph.to_owned(), reason };
        let unlike = |classes: &[String], width: usize| {
            let (count, names) = (classes.len(), classes.join(", "));
            let reason = format!("it names {count} classes ({names}), and the graph {graph} gives {width} numbers");
            ModelError::Malformed { file: files.describe("config.json"), reason }
        };
        match (self, output) {
            (Self::Embed { pooling, steps }, output) => {
                embedding(files, pooling, steps, output).map(|head| Arc::new(head) as _)
            }
            (Self::Sparse(head), EncoderOutput::Tokens { .. }) => Ok(Arc::new(*head)),
            (Self::Sparse(_), _) => {
                Err(unfit("a sparse model gives logits for each token, and this for the text".to_owned()))
            }
            (Self::Rerank { .. }, EncoderOutput::Pooled { width: 1, .. }) => Ok(Arc::new(Plain)),
            (Self::Rerank { .. }, _) => {
                Err(unfit("its configuration names one class, and it does not give one number for a text".to_owned()))
            }
            (Self::Classify { labels, .. }, EncoderOutput::Pooled { width, .. }) => match labels.len() == *width {
                true => Ok(Arc::new(Plain)),
                false => Err(unlike(labels, *width)),
            },
            (Self::Classify { .. }, _) => {
                Err(unfit("a classifier gives numbers for the text, and this for each token".to_owned()))
            }
            (Self::Entities { labels }, EncoderOutput::Tokens { width, .. }) => match labels.len() == *width {
                true => Ok(Arc::new(Plain)),
                false => Err(unlike(labels, *width)),
            },
            (Self::Entities { .. }, _) => {
                Err(unfit("a token classifier gives numbers for each token, and this for the text".to_owned()))
            }
        }
    }
}

fn embedding(
    files: &ModelFiles,
    pooling: &[Pooling],
    steps: &[StepPlan],
    output: &EncoderOutput,
) -> Result<EmbeddingHead, ModelError> {
    let (given, is_pooled) = match output {
        EncoderOutput::Tokens { width, .. } => (*width, false),
        EncoderOutput::Pooled { width, .. } => (*width, true),
    };
    let mut head = EmbeddingHead { pooling: pooling.to_vec(), steps: Vec::new() };
    for step in steps {
        let before = head.width(given, is_pooled);
        head.steps.push(match step {
            StepPlan::Normalise => Step::Normalise,
            StepPlan::Dense(dense) => Step::Dense(layer(files, dense)?),
        });
        if let (StepPlan::Dense(dense), Some(before), None) = (step, before, head.width(given, is_pooled)) {
            return Err(ModelError::Malformed {
                file: files.describe(&format!("{}/config.json", dense.folder)),
                reason: format!(
                    "the layer takes {} numbers, and what stands before it gives {before}",
                    dense.shape.inputs
                ),
            });
        }
    }
    Ok(head)
}

fn layer(files: &ModelFiles, plan: &Dense) -> Result<dense::Dense, ModelError> {
    let name = format!("{}/model.safetensors", plan.folder);
    let bytes = files.read(&name)?.ok_or_else(|| ModelError::FileMissing {
        file: files.describe(&name),
        expected: if files.has(&format!("{}/pytorch_model.bin", plan.folder)) {
            "the layer's weights must be a safetensors file; save the model with a newer sentence-transformers, which \
             turns pytorch_model.bin into one"
                .to_owned()
        } else {
            "it holds the weights of a layer that modules.json lists".to_owned()
        },
    })?;
    dense::Dense::read(&bytes, plan.shape)
        .map_err(|reason| ModelError::Malformed { file: files.describe(&name), reason })
}
