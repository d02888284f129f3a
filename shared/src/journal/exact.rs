//! Numbers read to the last bit: as it is built here, `serde_json` reads fractions quickly, and the last bit may be another.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::control::Resources;

/// A number.
pub(super) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    option(from)?.ok_or_else(|| D::Error::custom("a number is expected, not null"))
}

/// A number, or none.
pub(super) fn option<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    <&RawValue>::deserialize(from).and_then(read)
}

/// The fractions of a machine that are in use.
pub(super) fn resources<'de, D: Deserializer<'de>>(from: D) -> Result<Resources, D::Error> {
    #[derive(Deserialize)]
    struct Exact {
        #[serde(default, deserialize_with = "option")]
        cpu: Option<f64>,
        #[serde(default, deserialize_with = "option")]
        model_cpu: Option<f64>,
        #[serde(default, deserialize_with = "option")]
        memory: Option<f64>,
        #[serde(default, deserialize_with = "option")]
        network: Option<f64>,
        #[serde(default, deserialize_with = "option")]
        gpu: Option<f64>,
        #[serde(default, deserialize_with = "option")]
        gpu_memory: Option<f64>,
        #[serde(default, deserialize_with = "option")]
        kv_cache: Option<f64>,
    }
    let Exact { cpu, model_cpu, memory, network, gpu, gpu_memory, kv_cache } = Exact::deserialize(from)?;
    Ok(Resources { cpu, model_cpu, memory, network, gpu, gpu_memory, kv_cache })
}

fn read<E: serde::de::Error>(raw: &RawValue) -> Result<Option<f64>, E> {
    let text = raw.get();
    if text == "null" {
        return Ok(None);
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(Some(number)),
        _ => Err(E::custom(format!("a number is expected, not {}", text.chars().take(40).collect::<String>()))),
    }
}
