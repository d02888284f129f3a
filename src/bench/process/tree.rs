//! Processes with everything they have started: a server may be several.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use super::{Watched, kibibytes, time_of_stat};

/// Processes that are watched together with their descendants.
#[derive(Debug, Clone)]
pub(in crate::bench) struct Trees(Vec<u32>);

/// What they have taken so far.
#[derive(Debug, Clone, Default)]
pub(in crate::bench) struct Usage {
    /// Of each thread, by process and thread.
    times: BTreeMap<(u32, u32), Duration>,
    /// Memory of all processes that lies in main memory; what several share counts for each.
    pub(in crate::bench) resident_mib: f64,
}

impl Trees {
    /// Begins to watch.
    ///
    /// # Errors
    /// When one of the processes does not exist, or there is no `/proc` to look into.
    pub(in crate::bench) fn new(roots: &[u32]) -> anyhow::Result<Self> {
        roots.iter().try_for_each(|&pid| Watched::new(pid).map(drop))?;
        Ok(Self(roots.to_vec()))
    }

    /// A look at all of them; nothing where none is watched.
    pub(in crate::bench) fn usage(&self) -> Option<Usage> {
        if self.0.is_empty() {
            return None;
        }
        let mut usage = Usage::default();
        let mut resident = 0;
        for pid in self.processes() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            resident += kibibytes(&status, "VmRSS:").unwrap_or(0);
            let threads = numbers(&format!("/proc/{pid}/task"));
            usage.times.extend(threads.filter_map(|thread| Some(((pid, thread), time(pid, thread)?))));
        }
        usage.resident_mib = (resident as f64 / 102.4).round() / 10.0;
        Some(usage)
    }

    fn processes(&self) -> BTreeSet<u32> {
        let parents: Vec<(u32, u32)> = numbers("/proc").filter_map(|pid| Some((pid, parent(pid)?))).collect();
        let mut found: BTreeSet<u32> = self.0.iter().copied().collect();
        loop {
            let children = parents.iter().filter(|(_, parent)| found.contains(parent)).map(|&(pid, _)| pid);
            let more: Vec<u32> = children.filter(|pid| !found.contains(pid)).collect();
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }
}

impl Usage {
    /// Processor time since an earlier look. What a thread did that has ended meanwhile is not known any more.
    pub(in crate::bench) fn time_since(&self, earlier: &Self) -> Duration {
        let since = |(thread, &time): (&(u32, u32), &Duration)| {
            time.saturating_sub(earlier.times.get(thread).copied().unwrap_or_default())
        };
        self.times.iter().map(since).sum()
    }
}

/// The entries of a folder that are numbers.
fn numbers(folder: &str) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Processor time of a thread: in nanoseconds where the kernel counts them, else in its ticks of 10 ms, which are too
/// coarse for few requests.
fn time(pid: u32, thread: u32) -> Option<Duration> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/task/{thread}/{file}")).ok();
    let exact = read("schedstat").and_then(|text| text.split_whitespace().next()?.parse().ok());
    match exact {
        None | Some(0) => time_of_stat(&read("stat")?),
        Some(nanoseconds) => Some(Duration::from_nanos(nanoseconds)),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_watched_with_its_children() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat runs");
        let trees = Trees::new(&[std::process::id()]).expect("it runs");
        assert!(trees.processes().contains(&child.id()));
        assert!(trees.usage().expect("it is watched").resident_mib > 0.0);
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert!(Trees::new(&[]).expect("none").usage().is_none());
    }

    #[test]
    fn time_since_counts_new_threads_whole() {
        let of = |times: &[(u32, u64)]| Usage {
            times: times.iter().map(|&(thread, time)| ((1, thread), Duration::from_nanos(time))).collect(),
            resident_mib: 0.0,
        };
        let (before, after) = (of(&[(1, 100), (2, 50)]), of(&[(1, 130), (3, 7)]));
        assert_eq!(after.time_since(&before), Duration::from_nanos(37));
    }
}
