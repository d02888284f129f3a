//! The control groups that this process is in: how much they allow, and how much of it is taken.

use std::path::PathBuf;

use super::Root;
use super::text::{self, Mount};

/// How the kernel lays groups out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The groups of one controller, the innermost first. Each may have a limit of its own.
#[derive(Debug)]
struct Levels {
    version: Version,
    folders: Vec<PathBuf>,
}

impl Levels {
    /// `controller`: its name in version 1. A machine may have both versions, and a controller is in one of them.
    fn find(root: &Root, controller: &str) -> Option<Self> {
        let groups = root.read("/proc/self/cgroup")?;
        let mounts = root.read("/proc/self/mountinfo")?;
        let found = |controller, version| {
            let group = text::group_path(&groups, controller)?;
            let folders = Mount::find(&mounts, controller)?.levels(group);
            Some(Self { version, folders })
        };
        found(Some(controller), Version::One).or_else(|| found(None, Version::Two))
    }
}

/// What the processors of a group may do, and have done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ProcessorUse {
    /// Which of the groups.
    pub(super) level: usize,
    /// Processors that it may use.
    pub(super) quota: f64,
    /// Seconds that it has used one.
    pub(super) seconds: f64,
}

/// Processors as groups limit them.
#[derive(Debug)]
pub(super) struct ProcessorGroups {
    levels: Levels,
    /// Of version 1: where use is counted; the limits are often elsewhere.
    counted: Vec<PathBuf>,
}

impl ProcessorGroups {
    pub(super) fn find(root: &Root) -> Option<Self> {
        let levels = Levels::find(root, "cpu")?;
        let counted = match levels.version {
            Version::One => Levels::find(root, "cpuacct").filter(|levels| levels.version == Version::One)?.folders,
            Version::Two => Vec::new(),
        };
        Some(Self { levels, counted })
    }

    /// The groups that have a limit.
    pub(super) fn look(&self, root: &Root) -> Vec<ProcessorUse> {
        let levels = 0..self.levels.folders.len();
        levels.filter_map(|level| self.look_at(root, level)).collect()
    }

    fn look_at(&self, root: &Root, level: usize) -> Option<ProcessorUse> {
        let folder = &self.levels.folders[level];
        let (quota, seconds) = match self.levels.version {
            Version::Two => {
                let quota = text::quota_v2(&root.read(folder.join("cpu.max"))?)?;
                (quota, text::value(&root.read(folder.join("cpu.stat"))?, "usage_usec")? as f64 / 1e6)
            }
            Version::One => {
                let quota = root.read(folder.join("cpu.cfs_quota_us"))?;
                let quota = text::quota_v1(&quota, &root.read(folder.join("cpu.cfs_period_us"))?)?;
                // Both hierarchies hold the same groups, unless somebody took pains: then their depths differ.
                let counted = self.counted.get(level).filter(|_| self.counted.len() == self.levels.folders.len())?;
                (quota, text::number(&root.read(counted.join("cpuacct.usage"))?)? as f64 / 1e9)
            }
        };
        Some(ProcessorUse { level, quota, seconds })
    }
}

/// Memory as groups limit it.
#[derive(Debug)]
pub(super) struct MemoryGroups(Levels);

impl MemoryGroups {
    pub(super) fn find(root: &Root) -> Option<Self> {
        Levels::find(root, "memory").map(Self)
    }

    /// Bytes that the tightest of the groups allows.
    pub(super) fn limit(&self, root: &Root) -> Option<u64> {
        let file = match self.0.version {
            Version::Two => "memory.max",
            Version::One => "memory.limit_in_bytes",
        };
        let limits = self.0.folders.iter().filter_map(|folder| text::number(&root.read(folder.join(file))?));
        limits.filter(|&limit| limit > 0).min()
    }

    /// How full the fullest of the groups is that have a limit below what the machine has, from 0 to 1.
    ///
    /// Files that nobody has looked at lately do not count: the kernel takes their memory back before it kills anyone.
    pub(super) fn look(&self, root: &Root, machine: u64) -> Option<f64> {
        let files = match self.0.version {
            Version::Two => ["memory.max", "memory.current", "inactive_file"],
            Version::One => ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"],
        };
        let [limit, used, inactive] = files;
        let fill = |folder: &PathBuf| {
            let limit = text::number(&root.read(folder.join(limit))?).filter(|&limit| limit > 0 && limit < machine)?;
            let used = text::number(&root.read(folder.join(used))?)?;
            let inactive = root.read(folder.join("memory.stat")).and_then(|stat| text::value(&stat, inactive));
            Some(super::ratio(used.saturating_sub(inactive.unwrap_or(0)) as f64, limit as f64))
        };
        self.0.folders.iter().filter_map(fill).reduce(f64::max)
    }
}
