//! How much of its machine a worker uses, as its heartbeats tell.
//!
//! The kernel's files are read by ourselves: the crate that reads free memory elsewhere here ([`crate::memory`]) knows
//! neither how long a control group has run nor its quota, and of several nested groups it tells the sum, not which of
//! them is full. Nothing here fails: what cannot be read is absent.
//!
//! * [`text`]: what the files say; pure.
//! * [`group`]: control groups, of both versions.
//! * [`processors`], [`network`], [`gpu`]: use of each since the last look.
//! * [`inventory`]: what there is, in use or not.
//! * [`machine`]: looks that take too long are not waited for.
//! * [`observer`]: looks beside the runtime, and adds what the engines tell.

mod gpu;
mod group;
mod inventory;
mod machine;
mod network;
mod observer;
mod processors;
mod text;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use muster_shared::control::Resources;

use gpu::GpuMeter;
use group::MemoryGroups;
pub(crate) use inventory::capabilities;
use network::NetworkMeter;
pub(crate) use observer::{Observer, Seen};
use processors::{Busy, ProcessorMeter};

/// Less time than this between two looks tells nothing: the kernel counts processors in ticks of ten milliseconds.
const SHORTEST: Duration = Duration::from_millis(100);

/// Where files are read; `/`, but for tests.
#[derive(Debug, Clone)]
struct Root(PathBuf);

impl Root {
    fn system() -> Self {
        Self(PathBuf::from("/"))
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        std::fs::read_to_string(self.at(path)).ok()
    }

    fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.at(path).exists()
    }

    /// Names of what is in a folder.
    fn names(&self, folder: impl AsRef<Path>) -> Vec<String> {
        let entries = std::fs::read_dir(self.at(folder)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// A fraction from 0 to 1, whatever the clocks say.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole).clamp(0.0, 1.0) } else { 0.0 }
}

/// Measures this process and its machine. Reads files: not for a thread of the runtime.
#[derive(Debug)]
struct Meter {
    root: Root,
    processors: ProcessorMeter,
    memory: Option<MemoryGroups>,
    network: NetworkMeter,
    gpus: GpuMeter,
    /// When the last look was, and what it saw.
    last: (Instant, Resources),
}

impl Meter {
    /// Begins to measure. `network`: megabits a second, where somebody knows better than the system.
    fn new(network: Option<NonZeroU32>) -> Self {
        Self::at(Root::system(), network, processors::own_time(), Instant::now())
    }

    fn at(root: Root, network: Option<NonZeroU32>, own: Option<Duration>, now: Instant) -> Self {
        Self {
            processors: ProcessorMeter::new(&root, own),
            memory: MemoryGroups::find(&root),
            network: NetworkMeter::new(&root, network),
            gpus: GpuMeter::new(),
            last: (now, Resources::default()),
            root,
        }
    }

    /// What is in use, as rates since the last look.
    fn look(&mut self) -> Resources {
        self.look_at(processors::own_time(), Instant::now())
    }

    fn look_at(&mut self, own: Option<Duration>, now: Instant) -> Resources {
        let elapsed = now.saturating_duration_since(self.last.0);
        if elapsed < SHORTEST {
            return self.last.1;
        }
        let busy = self.processors.look(&self.root, own, elapsed);
        let gpus = self.gpus.look();
        let seen = Resources {
            cpu: busy.map(|Busy { all, .. }| all),
            // Every session runs on the processors: what this process takes, it computes.
            model_cpu: busy.and_then(|Busy { own, .. }| own),
            memory: self.memory(),
            network: self.network.look(&self.root, elapsed),
            gpu: gpus.busy,
            gpu_memory: gpus.memory,
            kv_cache: None,
        };
        self.last = (now, seen);
        seen
    }

    /// Memory of the fullest group with a limit, or of the machine.
    fn memory(&self) -> Option<f64> {
        let machine = self.root.read("/proc/meminfo")?;
        let kib = |word| text::value(&machine, word);
        let total = kib("MemTotal").filter(|&total| total > 0)?;
        let group = self.memory.as_ref().and_then(|groups| groups.look(&self.root, total.saturating_mul(1024)));
        group.or_else(|| Some(ratio(total.saturating_sub(kib("MemAvailable")?) as f64, total as f64)))
    }
}

#[cfg(test)]
mod tests;
