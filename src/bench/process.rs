//! What the system says of processes: of this one everywhere, of others under Linux.

mod tree;

use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

pub(super) use tree::{Trees, Usage};

/// Ticks of a second in `/proc`: part of Linux's interface, whatever the kernel's own clock.
const TICKS: u64 = 100;

/// Processor time of this process so far, all threads together.
pub(super) fn own_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Lets this process hold as many connections as it may: the usual limit of 1024 files is for programs that know no
/// better. Where that fails, connections fail later, with the system's own words.
pub(super) fn allow_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// A process on this machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watched(u32);

/// Memory of a process that lies in main memory, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    /// Now.
    pub(super) resident: u64,
    /// At most, since it began.
    pub(super) peak: u64,
}

impl Watched {
    /// Begins to watch.
    ///
    /// # Errors
    /// When there is no such process, or no `/proc` to look into.
    pub(super) fn new(pid: u32) -> anyhow::Result<Self> {
        let watched = Self(pid);
        watched.time().with_context(|| {
            format!("--pid {pid}: no such process here; give the one that serves, on this machine, under Linux")
        })?;
        Ok(watched)
    }

    /// Its processor time so far, all threads together.
    pub(super) fn time(self) -> Option<Duration> {
        time_of_stat(&self.read("stat")?)
    }

    pub(super) fn memory(self) -> Option<Memory> {
        memory_of_status(&self.read("status")?)
    }

    fn read(self, file: &str) -> Option<String> {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.0)).ok()
    }
}

/// User and system time, the 14th and 15th field. The 2nd is the program's name, which may hold anything.
fn time_of_stat(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut times = after_name.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = times.next()?.ok()? + times.next()?.ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS))
}

fn memory_of_status(status: &str) -> Option<Memory> {
    let mebibytes = |name| Some(kibibytes(status, name)? / 1024);
    Some(Memory { resident: mebibytes("VmRSS:")?, peak: mebibytes("VmHWM:")? })
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 3 0 100";
        assert_eq!(time_of_stat(stat), Some(Duration::from_secs(3)));
        assert_eq!(time_of_stat("7 (short) S 1"), None);
    }

    #[test]
    fn memory_is_told_in_mebibytes() {
        let status = "Name:\tx\nVmHWM:\t  20480 kB\nVmRSS:\t  10240 kB\n";
        assert_eq!(memory_of_status(status), Some(Memory { resident: 10, peak: 20 }));
        assert_eq!(memory_of_status("Name:\tkernel thread\n"), None);
    }

    #[test]
    fn work_takes_processor_time() {
        let begin = own_time();
        while own_time() == begin {
            std::hint::black_box(0);
        }
        assert!(own_time() - begin < Duration::from_secs(60));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_can_be_watched_and_a_missing_one_cannot() {
        let watched = Watched::new(std::process::id()).expect("it runs");
        assert!(watched.memory().expect("it has memory").peak > 0);
        let error = Watched::new(u32::MAX).expect_err("no process has this number");
        assert!(error.to_string().contains("--pid 4294967295"), "{error}");
    }
}
