//! What this process may use of its machine.

use muster_shared::control::{Capabilities, Gpu};
use nvml_wrapper::Nvml;

use super::Root;
use super::group::MemoryGroups;
use super::text;

/// Bytes in the unit of memory.
const GB: f64 = 1e9;

/// What a worker's machine has, as far as its control groups let it. Reads files and loads libraries: not for a thread of
/// the runtime.
pub(crate) fn capabilities() -> Capabilities {
    let (gpu, gpu_memory_gb) = gpus();
    Capabilities {
        // Knows quotas and affinity.
        cpus: std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok()),
        memory_gb: memory(&Root::system()),
        gpu: Some(gpu),
        gpu_memory_gb,
    }
}

/// The least limit of the control groups, or all that there is.
pub(super) fn memory(root: &Root) -> Option<f64> {
    let total = text::value(&root.read("/proc/meminfo")?, "MemTotal")?.saturating_mul(1024);
    let limit = MemoryGroups::find(root).and_then(|groups| groups.limit(root));
    Some(limit.map_or(total, |limit| limit.min(total)) as f64 / GB)
}

/// The GPUs that NVIDIA's library sees, and their memory; without the library there are none.
fn gpus() -> (Gpu, Option<f64>) {
    let Ok(nvml) = Nvml::init() else { return (Gpu::Any(false), None) };
    let devices: Vec<_> =
        (0..nvml.device_count().unwrap_or(0)).filter_map(|index| nvml.device_by_index(index).ok()).collect();
    let memory: u64 = devices.iter().filter_map(|device| device.memory_info().ok()).map(|memory| memory.total).sum();
    let gpu = match devices.as_slice() {
        [] => Gpu::Any(false),
        [device] => device.name().map_or(Gpu::Count(1), Gpu::Named),
        more => Gpu::Count(u32::try_from(more.len()).unwrap_or(u32::MAX)),
    };
    (gpu, (memory > 0).then_some(memory as f64 / GB))
}
