//! What a worker's machine has left, as a heartbeat tells it.

use serde::{Deserialize, Serialize};

/// How much of each resource is in use: fractions from 0 to 1, over the time since the last heartbeat where they are rates.
///
/// A field is absent where the worker cannot measure it. Nothing is read from an absent one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Processors of the worker's cgroup, or of its machine where it has no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Of `cpu`, what the worker's own models took to compute: it is what the worker is for, so a pause does not count
    /// it. Absent: none of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_cpu: Option<f64>,
    /// Memory of the cgroup, or of the machine, without what can be had back at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<f64>,
    /// The fastest network interface, in its busier direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<f64>,
    /// The busiest GPU that the worker uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<f64>,
    /// Memory of the fullest GPU that the worker uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<f64>,
    /// Room for keys and values of the language model that has least left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<f64>,
}

impl Resources {
    /// Every fraction, by its name in JSON.
    pub fn fractions(&self) -> [(&'static str, Option<f64>); 7] {
        [
            ("cpu", self.cpu),
            ("model_cpu", self.model_cpu),
            ("memory", self.memory),
            ("network", self.network),
            ("gpu", self.gpu),
            ("gpu_memory", self.gpu_memory),
            ("kv_cache", self.kv_cache),
        ]
    }
}
