//! With the files of real machines.

use proptest::prelude::*;

use super::*;

/// A machine with two processors.
const STAT: &str = "\
cpu  2547421 584012 496692 1009513 11749 0 40010 1853 0 0
cpu0 1248358 289117 236142 546931 4213 0 19276 888 0 0
cpu1 1299062 294894 260549 462582 7535 0 20733 964 0 0
intr 186549 0 0 0 0
ctxt 12345678
";

#[test]
fn a_quota_is_a_number_of_processors() {
    assert_eq!(quota_v2("200000 100000\n"), Some(2.0));
    assert_eq!(quota_v2("50000 100000"), Some(0.5));
    assert_eq!(quota_v1("150000\n", "100000\n"), Some(1.5));
}

#[test]
fn no_quota_and_garbage_are_none() {
    for text in ["max 100000\n", "", "200000", "200000 0", "0 100000", "-1 100000", "a b", "99999999999999999999 1"] {
        assert_eq!(quota_v2(text), None, "{text:?}");
    }
    for (quota, period) in [("-1\n", "100000\n"), ("100000", "0"), ("", ""), ("max", "100000")] {
        assert_eq!(quota_v1(quota, period), None, "{quota:?} {period:?}");
    }
}

#[test]
fn a_value_is_found_by_its_whole_word() {
    let stat = "usage_usec 36872246\nuser_usec 25000000\nnr_periods 0\n";
    assert_eq!(value(stat, "usage_usec"), Some(36_872_246));
    assert_eq!(value(stat, "usage"), None);
    let meminfo = "MemTotal:       24683656 kB\nMemFree:         5261516 kB\nMemAvailable:   24038268 kB\n";
    assert_eq!((value(meminfo, "MemTotal"), value(meminfo, "MemAvailable")), (Some(24_683_656), Some(24_038_268)));
    let memory = "inactive_file 49152\ntotal_inactive_file 13956755456\nbroken\nworse x\n";
    assert_eq!(value(memory, "inactive_file"), Some(49_152));
    assert_eq!(value(memory, "total_inactive_file"), Some(13_956_755_456));
    assert_eq!((value(memory, "broken"), value(memory, "worse"), value("", "x")), (None, None, None));
}

#[test]
fn the_processors_of_a_process_are_a_list_of_ranges() {
    let status =
        |list: &str| format!("Name:\tmuster\nCpus_allowed:\tff\nCpus_allowed_list:\t{list}\nMems_allowed:\t1\n");
    let allowed = Processors::allowed(&status("0-1,4")).expect("a list");
    assert_eq!([0, 1, 2, 3, 4, 5].map(|processor| allowed.has(processor)), [true, true, false, false, true, false]);
    for list in ["", "a", "1-", "-1", "0-1,", "99999999999"] {
        assert_eq!(Processors::allowed(&status(list)), None, "{list:?}");
    }
    assert_eq!(Processors::allowed("Name:\tmuster\n"), None);
}

#[test]
fn only_the_processors_that_may_be_used_count() {
    let all = Ticks::read(STAT, None).expect("ticks");
    assert_eq!(all.processors, 2);
    assert_eq!(all.busy, 1_248_358 + 289_117 + 236_142 + 19_276 + 888 + 1_299_062 + 294_894 + 260_549 + 20_733 + 964);
    assert_eq!(all.all - all.busy, 546_931 + 4_213 + 462_582 + 7_535);
    let second = Processors::allowed("Cpus_allowed_list:\t1").expect("a list");
    let one = Ticks::read(STAT, Some(&second)).expect("ticks");
    assert_eq!((one.processors, one.all - one.busy), (1, 462_582 + 7_535));
}

#[test]
fn processors_that_the_machine_does_not_show_are_taken_for_all_it_shows() {
    let elsewhere = Processors::allowed("Cpus_allowed_list:\t6-7").expect("a list"); // as behind lxcfs
    assert_eq!(Ticks::read(STAT, Some(&elsewhere)), Ticks::read(STAT, None));
}

#[test]
fn a_machine_that_does_not_count_is_none() {
    for stat in ["", "cpu  0 0 0 0\ncpu0 0 0 0 0\n", "cpu0 1 2\n", "cpu0 a b c d\n", "nonsense"] {
        assert_eq!(Ticks::read(stat, None), None, "{stat:?}");
    }
}

#[test]
fn groups_are_found_in_both_versions() {
    let v1 = "9:name=systemd:/\n4:memory:/docker/664febb\n2:cpu,cpuacct:/docker/664febb\n0::/\n";
    assert_eq!(group_path(v1, Some("memory")), Some("/docker/664febb"));
    assert_eq!(group_path(v1, Some("cpuacct")), Some("/docker/664febb"));
    assert_eq!((group_path(v1, Some("pids")), group_path(v1, None)), (None, Some("/")));
    let v2 = "0::/system.slice/muster:worker.service\n";
    assert_eq!(group_path(v2, None), Some("/system.slice/muster:worker.service"));
    for groups in ["", "nonsense", "1:2", "::"] {
        assert_eq!((group_path(groups, Some("cpu")), group_path(groups, None)), (None, None), "{groups:?}");
    }
}

#[test]
fn mounts_are_found_in_both_versions() {
    let mounts = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/66 /mnt/a\\040b rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 master:1 - cgroup2 cgroup2 rw
";
    let folder = |controller| Mount::find(mounts, controller).map(|mount| mount.folder);
    assert_eq!(folder(Some("cpuacct")), Some("/sys/fs/cgroup/cpu".into()));
    assert_eq!(folder(None), Some("/sys/fs/cgroup/unified".into()));
    let memory = Mount::find(mounts, Some("memory")).expect("a mount");
    assert_eq!(memory, Mount { root: "/docker/66".into(), folder: "/mnt/a b".into() });
    assert_eq!((folder(Some("pids")), Mount::find("", None), Mount::find("a b - cgroup2", None)), (None, None, None));
}

#[test]
fn the_groups_around_a_group_limit_it_too() {
    let mount = Mount { root: "/".into(), folder: "/sys/fs/cgroup".into() };
    let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    assert_eq!(
        mount.levels("/kube/pod/box"),
        paths(&["/sys/fs/cgroup/kube/pod/box", "/sys/fs/cgroup/kube/pod", "/sys/fs/cgroup/kube", "/sys/fs/cgroup"])
    );
    assert_eq!(mount.levels("/"), paths(&["/sys/fs/cgroup"]));
}

#[test]
fn a_group_that_cannot_be_seen_is_what_is_mounted() {
    let mount = Mount { root: "/docker/66".into(), folder: "/sys/fs/cgroup".into() };
    for group in ["/docker/66", "/", "/../other", "/docker", "/docker/66/../77", ""] {
        assert_eq!(mount.levels(group), [PathBuf::from("/sys/fs/cgroup")], "{group:?}");
    }
}

proptest! {
    #[test]
    fn no_text_is_too_odd(text in "(cpu[0-9 ]{0,30}|[0-9]{1,25} |[-:,/ a-z.]{0,12}| - cgroup2? |Cpus_allowed_list:|\\.\\./|\n){0,24}") {
        let _ = (number(&text), value(&text, "cpu"), quota_v2(&text), quota_v1(&text, &text));
        let allowed = Processors::allowed(&text);
        if let Some(ticks) = Ticks::read(&text, allowed.as_ref()) {
            prop_assert!(ticks.busy <= ticks.all && ticks.processors > 0);
        }
        for controller in [Some("cpu"), None] {
            let mount = Mount::find(&text, controller).unwrap_or(Mount { root: "/".into(), folder: "/sys".into() });
            let group = group_path(&text, controller).unwrap_or(&text);
            prop_assert!(mount.levels(group).iter().all(|level| level.starts_with(&mount.folder)));
        }
    }
}
