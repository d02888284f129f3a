//! What a worker's machine has.

use std::fmt;

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

    /// Whether both can be told of one machine: two numbers, or two names, must be the same.
    pub fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Count(one), Self::Count(other)) => one == other,
            (Self::Named(one), Self::Named(other)) => one.eq_ignore_ascii_case(other),
            _ => self.is_there() == other.is_there(),
        }
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(any) => any.fmt(f),
            Self::Count(count) => count.fmt(f),
            Self::Named(name) => name.fmt(f),
        }
    }
}
