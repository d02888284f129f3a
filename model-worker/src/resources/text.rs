//! What the kernel's files say. Pure: text in, numbers out; `None` for whatever is not as expected.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// A lone number.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind a word, in lines like `usage_usec 4711` or `MemTotal:  24683656 kB`.
pub(super) fn value(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut parts = line.split_ascii_whitespace();
        let first = parts.next()?;
        (first.strip_suffix(':').unwrap_or(first) == word).then(|| parts.next()?.parse().ok())?
    })
}

/// Processors that a group may use, as `cpu.max` of version 2 says; `None` where it may use all.
pub(super) fn quota_v2(text: &str) -> Option<f64> {
    let mut numbers = text.split_ascii_whitespace().map_while(|part| part.parse::<u64>().ok());
    share(numbers.next()?, numbers.next()?)
}

/// The same from `cpu.cfs_quota_us` and `cpu.cfs_period_us` of version 1, where -1 means all.
pub(super) fn quota_v1(quota: &str, period: &str) -> Option<f64> {
    share(number(quota)?, number(period)?)
}

fn share(quota: u64, period: u64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// Numbers of processors, as in `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Processors(Vec<RangeInclusive<u32>>);

impl Processors {
    /// Reads the list behind `Cpus_allowed_list` in a process's `status`.
    pub(super) fn allowed(status: &str) -> Option<Self> {
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
        };
        list.split(',').map(range).collect::<Option<_>>().map(Self)
    }

    fn has(&self, processor: u32) -> bool {
        self.0.iter().any(|range| range.contains(&processor))
    }
}

/// What processors did since the machine started, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ticks {
    /// Doing something, for whomever.
    pub(super) busy: u64,
    /// In all.
    pub(super) all: u64,
    /// Over how many processors.
    pub(super) processors: u32,
}

impl Ticks {
    /// Reads `/proc/stat`: the processors that are allowed, or all of them where it knows none of those.
    pub(super) fn read(stat: &str, allowed: Option<&Processors>) -> Option<Self> {
        let each = stat.lines().filter_map(|line| {
            let (name, ticks) = line.strip_prefix("cpu")?.split_once(' ')?;
            Some((name.parse::<u32>().ok()?, Self::of(ticks)?))
        });
        let each: Vec<(u32, Self)> = each.collect();
        let is_allowed = |(processor, _): &&(u32, Self)| allowed.is_none_or(|allowed| allowed.has(*processor));
        let mut chosen: Vec<&(u32, Self)> = each.iter().filter(is_allowed).collect();
        if chosen.is_empty() {
            chosen = each.iter().collect();
        }
        let sum = |sum: Self, (_, one): &(u32, Self)| Self {
            busy: sum.busy.saturating_add(one.busy),
            all: sum.all.saturating_add(one.all),
            processors: sum.processors + 1,
        };
        let ticks = chosen.into_iter().fold(Self::default(), sum);
        (ticks.all > 0).then_some(ticks) // some containers show zeros
    }

    /// user, nice, system, idle, iowait, irq, softirq, steal; what guests take is in the first two already. What the
    /// host has stolen is not there for us, so it counts as taken.
    fn of(line: &str) -> Option<Self> {
        let numbers: Vec<u64> = line.split_ascii_whitespace().map_while(|part| part.parse().ok()).take(8).collect();
        let idle = numbers.get(3)?.saturating_add(*numbers.get(4).unwrap_or(&0));
        let all = numbers.iter().fold(0, |sum: u64, &ticks| sum.saturating_add(ticks));
        Some(Self { busy: all.saturating_sub(idle), all, processors: 1 })
    }
}

/// The group of this process for a controller, as `/proc/self/cgroup` names it: `None` for version 2, whose groups are
/// the same for all controllers.
pub(super) fn group_path<'a>(groups: &'a str, controller: Option<&str>) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match controller {
            Some(controller) => controllers.split(',').any(|one| one == controller),
            None => number == "0" && controllers.is_empty(),
        };
        is_it.then_some(path)
    })
}

/// Where groups can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// The group that is seen there.
    pub(super) root: PathBuf,
    /// The folder.
    pub(super) folder: PathBuf,
}

impl Mount {
    /// Finds it in `/proc/self/mountinfo`.
    pub(super) fn find(mounts: &str, controller: Option<&str>) -> Option<Self> {
        mounts.lines().find_map(|line| {
            // Optional fields stand between the two halves, and their number varies.
            let (front, back) = line.split_once(" - ")?;
            let mut front = front.split(' ').skip(3);
            let (root, folder) = (front.next()?, front.next()?);
            let mut back = back.split(' ');
            let (kind, options) = (back.next()?, back.nth(1)?);
            let is_it = match controller {
                Some(controller) => kind == "cgroup" && options.split(',').any(|one| one == controller),
                None => kind == "cgroup2",
            };
            is_it.then(|| Self { root: unescaped(root), folder: unescaped(folder) })
        })
    }

    /// The folder of a group, and those of the groups that it is in, as far as they can be seen; itself first.
    pub(super) fn levels(&self, group: &str) -> Vec<PathBuf> {
        // A group above the mount's own, or beside it, is not seen there: what is seen holds for this process, too.
        let below = Path::new(group).strip_prefix(&self.root).unwrap_or(Path::new(""));
        let is_plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let group = if is_plain { self.folder.join(below) } else { self.folder.clone() };
        group.ancestors().take_while(|level| level.starts_with(&self.folder)).map(Path::to_owned).collect()
    }
}

/// Spaces and the like are octal in `mountinfo`.
fn unescaped(path: &str) -> PathBuf {
    let replaced = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    replaced.into_iter().fold(path.to_owned(), |path, (code, text)| path.replace(code, text)).into()
}

#[cfg(test)]
mod tests;
