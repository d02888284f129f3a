//! How busy and how full the GPUs are that this process computes on, as NVIDIA's management library tells.
//!
//! The library is loaded when it is there. Where it is not, there is nothing to tell, which is no error.

use nvml_wrapper::{Device, Nvml};

use super::ratio;

/// How the GPUs are that this process uses, from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct GpuUse {
    /// The busiest of them.
    pub(super) busy: Option<f64>,
    /// Memory of the fullest of them.
    pub(super) memory: Option<f64>,
}

impl GpuUse {
    /// Of both, the worse.
    fn worse(self, other: Self) -> Self {
        let worse = |one: Option<f64>, other: Option<f64>| one.into_iter().chain(other).reduce(f64::max);
        Self { busy: worse(self.busy, other.busy), memory: worse(self.memory, other.memory) }
    }
}

/// A GPU, and who computes on it.
struct Gpu {
    processes: Vec<u32>,
    is: GpuUse,
}

/// Looks at GPUs, again and again.
#[derive(Debug)]
pub(super) struct GpuMeter {
    nvml: Option<Nvml>,
}

impl GpuMeter {
    /// Loading the library takes some milliseconds where it is there: not for a thread of the runtime.
    pub(super) fn new() -> Self {
        let nvml = Nvml::init().inspect_err(|error| tracing::debug!(%error, "GPUs are not measured")).ok();
        Self { nvml }
    }

    pub(super) fn look(&self) -> GpuUse {
        let Some(nvml) = &self.nvml else { return GpuUse::default() };
        let devices = (0..nvml.device_count().unwrap_or(0)).filter_map(|index| nvml.device_by_index(index).ok());
        used_by(std::process::id(), devices.map(|device| gpu(&device)))
    }
}

/// A device tells what it can, which is not everything on each.
fn gpu(device: &Device<'_>) -> Gpu {
    let processes = device.running_compute_processes().unwrap_or_default();
    let memory = device.memory_info().ok().filter(|memory| memory.total > 0);
    let busy = device.utilization_rates().ok();
    Gpu {
        processes: processes.into_iter().map(|process| process.pid).collect(),
        is: GpuUse {
            busy: busy.map(|rates| ratio(f64::from(rates.gpu), 100.0)),
            memory: memory.map(|memory| ratio(memory.used as f64, memory.total as f64)),
        },
    }
}

fn used_by(process: u32, gpus: impl Iterator<Item = Gpu>) -> GpuUse {
    let used = gpus.filter(|gpu| gpu.processes.contains(&process)).map(|gpu| gpu.is);
    used.fold(GpuUse::default(), GpuUse::worse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(processes: &[u32], busy: Option<f64>, memory: Option<f64>) -> Gpu {
        Gpu { processes: processes.to_vec(), is: GpuUse { busy, memory } }
    }

    #[test]
    fn only_the_gpus_that_the_process_computes_on_count_and_of_them_the_worst() {
        let gpus = || {
            [
                gpu(&[7, 8], Some(0.2), Some(0.9)),
                gpu(&[8], Some(0.5), Some(0.1)),
                gpu(&[9], Some(1.0), Some(1.0)),
                gpu(&[8], None, None),
            ]
            .into_iter()
        };
        assert_eq!(used_by(8, gpus()), GpuUse { busy: Some(0.5), memory: Some(0.9) });
        assert_eq!(used_by(7, gpus()), GpuUse { busy: Some(0.2), memory: Some(0.9) });
        assert_eq!(used_by(1, gpus()), GpuUse::default());
    }

    #[test]
    fn a_process_that_computes_on_no_gpu_tells_of_none() {
        assert_eq!(GpuMeter::new().look(), GpuUse::default()); // with the library or without
    }
}
