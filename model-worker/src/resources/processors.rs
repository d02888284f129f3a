//! How busy the processors are that this process may use.

use std::time::Duration;

use super::group::{ProcessorGroups, ProcessorUse};
use super::text::{Processors, Ticks};
use super::{Root, ratio};

/// How busy processors were in some time, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Busy {
    /// With everything that ran there.
    pub(super) all: f64,
    /// With this process.
    pub(super) own: Option<f64>,
}

/// What is counted since the start of something.
#[derive(Debug, Default)]
struct Counts {
    groups: Vec<ProcessorUse>,
    machine: Option<Ticks>,
    /// Processor time of this process.
    own: Option<Duration>,
}

/// Looks at processors, again and again.
#[derive(Debug)]
pub(super) struct ProcessorMeter {
    groups: Option<ProcessorGroups>,
    before: Counts,
}

impl ProcessorMeter {
    pub(super) fn new(root: &Root, own: Option<Duration>) -> Self {
        let groups = ProcessorGroups::find(root);
        let before = count(groups.as_ref(), root, own);
        Self { groups, before }
    }

    /// What they did since the last look, that long ago.
    ///
    /// A group's quota is what there is, where it is less than the machine's processors; of several groups the busiest
    /// counts. Without a quota, it is the processors that this process may use, and whoever uses them.
    pub(super) fn look(&mut self, root: &Root, own: Option<Duration>, elapsed: Duration) -> Option<Busy> {
        let now = count(self.groups.as_ref(), root, own);
        let before = std::mem::replace(&mut self.before, now);
        let now = &self.before;
        let seconds = elapsed.as_secs_f64();
        let processors = now.machine.map(|ticks| f64::from(ticks.processors));
        let group = |now: &ProcessorUse| {
            let before = before.groups.iter().find(|before| before.level == now.level)?;
            let limits = processors.is_none_or(|processors| now.quota < processors);
            limits.then(|| (ratio(now.seconds - before.seconds, seconds * now.quota), now.quota))
        };
        let limited = now.groups.iter().filter_map(group).max_by(|a, b| a.0.total_cmp(&b.0));
        let (all, processors) = limited.or_else(|| machine(before.machine?, now.machine?))?;
        let own = now.own.zip(before.own).map(|(now, before)| now.saturating_sub(before).as_secs_f64());
        // Ticks are coarse: a process alone on its processors must not be busier than they are.
        Some(Busy { all, own: own.map(|own| ratio(own, seconds * processors).min(all)) })
    }
}

fn count(groups: Option<&ProcessorGroups>, root: &Root, own: Option<Duration>) -> Counts {
    let allowed = root.read("/proc/self/status").and_then(|status| Processors::allowed(&status));
    Counts {
        groups: groups.map(|groups| groups.look(root)).unwrap_or_default(),
        machine: root.read("/proc/stat").and_then(|stat| Ticks::read(&stat, allowed.as_ref())),
        own,
    }
}

/// How busy they were, and how many they are; `None` when they counted nothing, or were others before.
fn machine(before: Ticks, now: Ticks) -> Option<(f64, f64)> {
    let all = now.all.checked_sub(before.all).filter(|&all| all > 0 && now.processors == before.processors)?;
    Some((ratio(now.busy.saturating_sub(before.busy) as f64, all as f64), f64::from(now.processors)))
}

/// Time that this process has spent on processors, all its threads together.
#[cfg(unix)]
pub(super) fn own_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(not(unix))]
pub(super) fn own_time() -> Option<Duration> {
    None
}
