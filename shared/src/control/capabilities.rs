//! What a worker's machine has.

use serde::{Deserialize, Serialize};

/// What a machine has, in a worker's own words or as an operator has written it down. What is absent is not known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory, in units of 10^9 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gb: Option<f64>,
    /// Its GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Memory of all GPUs together, in units of 10^9 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_gb: Option<f64>,
}

/// Which GPUs a machine has: `true`, `2`, or `"NVIDIA L4"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Gpu {
    /// Whether it has any.
    Any(bool),
    /// How many.
    Count(u32),
    /// One, of that name.
    Named(String),
}

impl Gpu {
    /// Whether it has any.
    pub fn is_there(&self) -> bool {
        match self {
            Self::Any(any) => *any,
            Self::Count(count) => *count > 0,
            Self::Named(_) => true,
        }
    }
}
