//! With trees of files as real machines have them.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A machine whose files can be changed between two looks.
struct Machine {
    folder: tempfile::TempDir,
    now: Instant,
    own: Duration,
}

impl Machine {
    /// One with two processors and 16 GB, of which 4 are in use; no groups, no network.
    fn bare() -> Self {
        let machine = Self { folder: tempfile::tempdir().expect("a folder"), now: Instant::now(), own: Duration::ZERO };
        machine.write("/proc/meminfo", "MemTotal: 16000000 kB\nMemFree: 100 kB\nMemAvailable: 12000000 kB\n");
        machine.write("/proc/self/status", "Name:\tmuster\nCpus_allowed_list:\t0-1\n");
        machine.ran(0);
        machine
    }

    /// The same with one group of version 2, on a system that has no other.
    fn v2(files: &[(&str, &str)]) -> Self {
        let machine = Self::bare();
        machine.write("/proc/self/cgroup", "0::/pod/box\n");
        machine.write(
            "/proc/self/mountinfo",
            "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot\n",
        );
        for (file, text) in files {
            machine.write(&format!("/sys/fs/cgroup/pod/{file}"), text);
        }
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = Root(self.folder.path().to_owned()).at(path);
        std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }

    /// Both processors together were busy for so many of two hundred ticks a second, in the one second there was.
    fn ran(&self, busy: u64) {
        let line = |number: u64, busy: u64| format!("cpu{number} {busy} 0 0 {} 0 0 0 0 0 0\n", 1000 - busy);
        self.write("/proc/stat", &format!("cpu  {busy} 0 0 0\n{}{}", line(0, busy / 2), line(1, busy - busy / 2)));
        if busy > 0 {
            let line = |number: u64, busy: u64| format!("cpu{number} {busy} 0 0 {} 0 0 0 0 0 0\n", 1100 - busy);
            self.write("/proc/stat", &format!("cpu  0 0 0 0\n{}{}", line(0, busy / 2), line(1, busy - busy / 2)));
        }
    }

    fn meter(&self, network: Option<u32>) -> Meter {
        let network = network.map(|speed| NonZeroU32::new(speed).expect("not zero"));
        Meter::at(Root(self.folder.path().to_owned()), network, Some(self.own), self.now)
    }

    /// A second later, in which this process ran for so long.
    fn look(&mut self, meter: &mut Meter, own: Duration) -> Resources {
        self.now += SECOND;
        self.own += own;
        meter.look_at(Some(self.own), self.now)
    }
}

/// Both are the same, but for rounding.
#[track_caller]
fn assert_close(given: Option<f64>, expected: f64) {
    assert!(given.is_some_and(|given| (given - expected).abs() < 1e-6), "{given:?} is not {expected}");
}

#[test]
fn without_a_limit_the_machine_counts_with_all_that_runs_there() {
    let mut machine = Machine::bare();
    let mut meter = machine.meter(None);
    machine.ran(150);
    let seen = machine.look(&mut meter, SECOND / 2);
    assert_close(seen.cpu, 0.75);
    assert_close(seen.model_cpu, 0.25);
    assert_close(seen.memory, 0.25);
    assert_eq!((seen.network, seen.gpu, seen.gpu_memory), (None, None, None));
}

#[test]
fn a_group_of_version_2_counts_against_its_own_quota() {
    let files = [
        ("box/cpu.max", "50000 100000\n"),
        ("box/cpu.stat", "usage_usec 7000000\nuser_usec 1\nsystem_usec 2\n"),
        ("box/memory.max", "4096000000\n"),
        ("box/memory.current", "3072000000\n"),
        ("box/memory.stat", "anon 5\ninactive_file 1024000000\nactive_file 3\n"),
    ];
    let mut machine = Machine::v2(&files);
    let mut meter = machine.meter(None);
    machine.ran(10);
    machine.write("/sys/fs/cgroup/pod/box/cpu.stat", "usage_usec 7400000\nuser_usec 1\nsystem_usec 2\n");
    let seen = machine.look(&mut meter, SECOND / 5);
    assert_close(seen.cpu, 0.8);
    assert_close(seen.model_cpu, 0.4);
    assert_close(seen.memory, 0.5);
}

#[test]
fn of_nested_groups_the_fullest_counts() {
    let files = [
        ("box/memory.max", "max\n"),
        ("box/memory.current", "1000000\n"),
        ("memory.max", "2000000000\n"),
        ("memory.current", "1800000000\n"),
        ("memory.stat", "inactive_file 0\n"),
        ("cpu.max", "150000 100000\n"),
        ("cpu.stat", "usage_usec 0\n"),
        ("box/cpu.max", "100000 100000\n"),
        ("box/cpu.stat", "usage_usec 0\n"),
    ];
    let mut machine = Machine::v2(&files);
    let mut meter = machine.meter(None);
    machine.write("/sys/fs/cgroup/pod/cpu.stat", "usage_usec 1350000\n");
    machine.write("/sys/fs/cgroup/pod/box/cpu.stat", "usage_usec 300000\n");
    let seen = machine.look(&mut meter, 3 * SECOND / 10);
    assert_close(seen.memory, 0.9);
    assert_close(seen.cpu, 0.9);
    assert_close(seen.model_cpu, 0.2);
}

#[test]
fn a_group_of_version_1_counts_though_its_files_are_in_several_places() {
    let mut machine = Machine::bare();
    machine.write("/proc/self/cgroup", "4:memory:/docker/66\n2:cpuacct:/docker/66\n1:cpu:/docker/66\n0::/\n");
    machine.write(
        "/proc/self/mountinfo",
        "32 31 0:29 /docker/66 /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
         33 31 0:30 /docker/66 /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n\
         35 31 0:32 /docker/66 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    );
    machine.write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n");
    machine.write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    machine.write("/sys/fs/cgroup/cpuacct/cpuacct.usage", "36872246753519\n");
    machine.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "8000000000\n");
    machine.write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "7000000000\n");
    machine.write("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 1000000000\n");
    let mut meter = machine.meter(None);
    machine.write("/sys/fs/cgroup/cpuacct/cpuacct.usage", "36873746753519\n");
    let seen = machine.look(&mut meter, SECOND);
    assert_close(seen.cpu, 1.0);
    assert_close(seen.model_cpu, 2.0 / 3.0);
    assert_close(seen.memory, 0.75);
}

#[test]
fn a_group_that_allows_more_than_the_machine_has_does_not_count() {
    let files = [
        ("cpu.max", "400000 100000\n"),
        ("cpu.stat", "usage_usec 0\n"),
        ("memory.max", "9223372036854771712\n"),
        ("memory.current", "1\n"),
    ];
    let mut machine = Machine::v2(&files);
    let mut meter = machine.meter(None);
    machine.ran(100);
    let seen = machine.look(&mut meter, Duration::ZERO);
    assert_close(seen.cpu, 0.5);
    assert_close(seen.model_cpu, 0.0);
    assert_close(seen.memory, 0.25);
}

#[test]
fn a_process_is_never_busier_than_its_processors() {
    let mut machine = Machine::bare();
    let mut meter = machine.meter(None);
    machine.ran(20);
    let seen = machine.look(&mut meter, 9 * SECOND);
    assert_close(seen.cpu, 0.1);
    assert_close(seen.model_cpu, 0.1);
}

#[test]
fn what_cannot_be_read_is_absent_and_so_is_nonsense() {
    let empty = Machine { folder: tempfile::tempdir().expect("a folder"), now: Instant::now(), own: SECOND };
    let mut odd = Machine::bare();
    for (path, text) in [
        ("/proc/stat", "cpu0 what\n"),
        ("/proc/meminfo", "MemTotal: 0 kB\nMemAvailable: -5 kB\n"),
        ("/proc/self/cgroup", ":::\n0::/../..\n"),
        ("/proc/self/mountinfo", "nonsense - cgroup2\n"),
        ("/proc/self/status", "Cpus_allowed_list: a-b\n"),
        ("/sys/class/net/eth0/speed", "fast\n"),
    ] {
        odd.write(path, text);
    }
    let mut meter = odd.meter(Some(100));
    assert_eq!(odd.look(&mut meter, SECOND), Resources::default());
    let mut machine = empty;
    let mut meter = machine.meter(None);
    assert_eq!(machine.look(&mut meter, SECOND), Resources::default());
}

#[test]
fn counts_that_run_backwards_are_taken_for_none() {
    let mut machine = Machine::bare();
    machine.ran(150);
    let mut meter = machine.meter(None);
    machine.ran(0);
    let seen = machine.look(&mut meter, SECOND);
    assert_eq!((seen.cpu, seen.model_cpu), (None, None));
}

/// Writes what an interface has carried.
fn carried(machine: &Machine, name: &str, speed: Option<&str>, bytes: (u64, u64)) {
    let at = |file: &str| format!("/sys/class/net/{name}/{file}");
    machine.write(&at("type"), if name == "lo" { "772\n" } else { "1\n" });
    if let Some(speed) = speed {
        machine.write(&at("speed"), speed);
    }
    machine.write(&at("statistics/rx_bytes"), &bytes.0.to_string());
    machine.write(&at("statistics/tx_bytes"), &bytes.1.to_string());
}

#[test]
fn the_fastest_interface_counts_in_its_busier_direction() {
    let mut machine = Machine::bare();
    for (name, speed) in [("lo", None), ("eth0", Some("1000\n")), ("eth1", Some("100\n")), ("veth0", Some("10000\n"))] {
        carried(&machine, name, speed, (5, 5));
    }
    machine.write("/sys/class/net/eth0/device/vendor", "");
    machine.write("/sys/class/net/eth1/device/vendor", "");
    let mut meter = machine.meter(None);
    carried(&machine, "lo", None, (1 << 40, 1 << 40));
    carried(&machine, "eth0", None, (5 + 25_000_000, 5 + 100_000_000));
    carried(&machine, "eth1", None, (5 + 12_500_000, 5));
    carried(&machine, "veth0", None, (1 << 40, 1 << 40));
    let seen = machine.look(&mut meter, SECOND);
    assert_close(seen.network, 0.8);
}

#[test]
fn a_speed_that_nobody_knows_is_absent_and_one_that_is_told_is_believed() {
    for (told, expected) in [(None, None), (Some(100), Some(0.5))] {
        let mut machine = Machine::bare();
        carried(&machine, "lo", None, (0, 0));
        carried(&machine, "eth0", Some("-1\n"), (0, 0));
        let mut meter = machine.meter(told);
        carried(&machine, "lo", None, (1 << 40, 1 << 40));
        carried(&machine, "eth0", None, (6_250_000, 0));
        let seen = machine.look(&mut meter, SECOND);
        assert_eq!(seen.network, expected);
    }
}

#[test]
fn two_looks_at_once_tell_the_same() {
    let mut machine = Machine::bare();
    let mut meter = machine.meter(None);
    machine.ran(150);
    let first = machine.look(&mut meter, SECOND);
    machine.ran(200);
    assert_eq!(meter.look_at(Some(machine.own), machine.now + SHORTEST / 2), first);
}

#[cfg(target_os = "linux")]
#[test]
fn this_machine_tells_of_its_processors_and_its_memory() {
    let mut meter = Meter::new(None);
    let begun = Instant::now();
    let mut sum = 0_u64;
    while begun.elapsed() < 2 * SHORTEST {
        sum = sum.wrapping_mul(31).wrapping_add(7); // so that there is something to see
    }
    let seen = meter.look();
    assert!(seen.memory.is_some_and(|memory| memory > 0.0 && memory < 1.0), "{seen:?} after {sum}");
    let (cpu, own) = (seen.cpu.expect("processors"), seen.model_cpu.expect("this process"));
    assert!(own > 0.0 && own <= cpu && cpu <= 1.0, "{seen:?}");
}

#[test]
fn memory_is_what_the_tightest_group_allows_or_what_the_machine_has() {
    let memory = |machine: &Machine| inventory::memory(&Root(machine.folder.path().to_owned()));
    assert_eq!(memory(&Machine::bare()), Some(16.384));
    assert_eq!(memory(&Machine::v2(&[("memory.max", "max\n"), ("box/memory.max", "2000000000\n")])), Some(2.0));
    assert_eq!(memory(&Machine::v2(&[("memory.max", "1000000000\n"), ("box/memory.max", "2000000000\n")])), Some(1.0));
    assert_eq!(memory(&Machine::v2(&[("memory.max", "99000000000\n")])), Some(16.384), "more than there is");
}
