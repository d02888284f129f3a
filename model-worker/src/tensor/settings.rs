//! A model's `config.pbtxt`, and what the graph adds to it.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_shared::tensor::config::{
    DynamicBatching, InstanceGroup, ModelConfig, StringValue, TensorConfig, VersionPolicy, triton_name,
};

use super::pbtxt::{self, Field, Message, Value};
use super::queue::Batching;
use crate::model::tensor::{Dimension, Port, Ports};

mod complete;
mod fields;

pub use complete::{Complete, complete};
use fields::Fields;

/// Names under which Triton knows what muster is: anything else runs no ONNX.
const PLATFORM: &str = "onnxruntime_onnx";
const BACKEND: &str = "onnxruntime";
/// The graph's file in a version's folder, unless told otherwise.
pub const GRAPH_FILE: &str = "model.onnx";
/// More sessions of one graph than anybody can want.
const MOST_INSTANCES: u32 = 256;

/// What a configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// As clients are told.
    pub config: ModelConfig,
    /// Whether `max_batch_size` is there: a 0 that was written forbids what an absent one leaves open.
    pub says_batch_size: bool,
    /// Words about what was not understood or is not done, each with its lines.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Those of a model without a configuration.
    pub fn usual(name: &str) -> Self {
        Self::read(name, "").unwrap_or_default()
    }

    /// Reads a configuration; `name` is that of the model's folder.
    ///
    /// # Errors
    /// In words, with the line, when it is no text of this format, or says what cannot be.
    pub fn read(name: &str, text: &str) -> Result<Self, String> {
        let message = pbtxt::parse(text).map_err(|error| error.to_string())?;
        let mut fields = Fields::new(&message);
        let config = config(name, &mut fields)?;
        let mut warnings = fields.done();
        let ignored = fields.ignored();
        if !ignored.is_empty() {
            warnings.push(format!("known to Triton and without effect here: {}", ignored.join(", ")));
        }
        let says_batch_size = message.0.iter().any(|field| field.name == "max_batch_size");
        Ok(Self { config, says_batch_size, warnings })
    }
}

fn config(folder: &str, fields: &mut Fields<'_>) -> Result<ModelConfig, String> {
    let name = fields.text("name")?.unwrap_or_else(|| folder.to_owned());
    if name != folder {
        return Err(format!("name is `{name}`, and the model's folder is `{folder}`; they must be the same"));
    }
    let platform = fields.text("platform")?.filter(|text| !text.is_empty());
    let backend = fields.text("backend")?.filter(|text| !text.is_empty());
    if let Some(other) = platform.as_deref().filter(|platform| *platform != PLATFORM) {
        return Err(format!("platform is `{other}`; muster runs `{PLATFORM}`"));
    }
    if let Some(other) = backend.as_deref().filter(|backend| *backend != BACKEND) {
        return Err(format!("backend is `{other}`; muster runs `{BACKEND}`"));
    }
    let max_batch_size = fields.number("max_batch_size")?.unwrap_or(0);
    let file = fields.text("default_model_filename")?.filter(|text| !text.is_empty());
    let config = ModelConfig {
        name,
        platform: PLATFORM.to_owned(),
        backend: BACKEND.to_owned(),
        version_policy: match fields.message("version_policy")? {
            Some(mut policy) => fields.nested(version_policy(&mut policy)?, policy),
            None => VersionPolicy::default(),
        },
        max_batch_size,
        input: fields.tensors("input")?,
        output: fields.tensors("output")?,
        instance_group: fields.each("instance_group", instance_group)?,
        default_model_filename: file.unwrap_or_else(|| GRAPH_FILE.to_owned()),
        dynamic_batching: match fields.message("dynamic_batching")? {
            Some(mut batching) => Some(fields.nested(dynamic_batching(&mut batching)?, batching)),
            None => None,
        },
        parameters: fields.each("parameters", parameter)?.into_iter().collect(),
    };
    check_batching(&config)?;
    Ok(config)
}

fn check_batching(config: &ModelConfig) -> Result<(), String> {
    let Some(batching) = &config.dynamic_batching else { return Ok(()) };
    if config.max_batch_size == 0 {
        return Err("dynamic_batching is there, and max_batch_size is 0; say how many rows may run together".to_owned());
    }
    let largest = config.max_batch_size;
    match batching.preferred_batch_size.iter().find(|&&size| size == 0 || size > largest) {
        Some(size) => {
            Err(format!("preferred_batch_size holds {size}; expected 1 to max_batch_size, which is {largest}"))
        }
        None => Ok(()),
    }
}

fn version_policy(fields: &mut Fields<'_>) -> Result<VersionPolicy, String> {
    if let Some(mut latest) = fields.message("latest")? {
        let num_versions = latest.number("num_versions")?.unwrap_or(1);
        if num_versions == 0 {
            return Err("version_policy.latest.num_versions is 0; expected at least 1".to_owned());
        }
        return Ok(fields.nested(VersionPolicy::Latest { num_versions }, latest));
    }
    if let Some(mut specific) = fields.message("specific")? {
        let versions = specific.numbers("versions")?;
        if versions.is_empty() {
            return Err("version_policy.specific names no versions".to_owned());
        }
        return Ok(fields.nested(VersionPolicy::Specific { versions }, specific));
    }
    match fields.message("all")? {
        Some(all) => Ok(fields.nested(VersionPolicy::All {}, all)),
        None => Ok(VersionPolicy::default()),
    }
}

fn instance_group(fields: &mut Fields<'_>) -> Result<InstanceGroup, String> {
    let name = fields.text("name")?.unwrap_or_default();
    let kind = fields.word("kind")?.unwrap_or_else(|| "KIND_AUTO".to_owned());
    if !["KIND_AUTO", "KIND_CPU"].contains(&kind.as_str()) {
        return Err(format!("instance_group.kind is {kind}; this worker has KIND_CPU (and KIND_AUTO means that)"));
    }
    let count = fields.number("count")?.unwrap_or(1);
    if count == 0 || count > MOST_INSTANCES {
        return Err(format!("instance_group.count is {count}; expected 1 to {MOST_INSTANCES}"));
    }
    Ok(InstanceGroup { name, kind, count })
}

fn dynamic_batching(fields: &mut Fields<'_>) -> Result<DynamicBatching, String> {
    let preferred = fields.numbers("preferred_batch_size")?;
    Ok(DynamicBatching {
        preferred_batch_size: preferred,
        max_queue_delay_microseconds: fields.number("max_queue_delay_microseconds")?.unwrap_or(0),
    })
}

fn parameter(fields: &mut Fields<'_>) -> Result<(String, StringValue), String> {
    let key = fields.text("key")?.unwrap_or_default();
    let string_value = match fields.message("value")? {
        Some(mut value) => {
            let text = value.text("string_value")?.unwrap_or_default();
            fields.nested(text, value)
        }
        None => String::new(),
    };
    Ok((key, StringValue { string_value }))
}

/// How requests of a model go together, as its configuration declares it.
pub fn declared(config: &ModelConfig) -> Option<Batching> {
    let batching = config.dynamic_batching.as_ref()?;
    Some(Batching {
        largest: config.max_batch_size as usize,
        preferred: batching.preferred_batch_size.iter().map(|&size| size as usize).collect(),
        delay: Duration::from_micros(batching.max_queue_delay_microseconds),
    })
}

#[cfg(test)]
mod tests;
