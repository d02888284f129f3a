//! Makes this process's environment fit, before anything reads it.

/// Must be the first call of `main`.
///
/// * `ORT_DISABLE_TELEMETRY` is set: ONNX Runtime's official libraries open their telemetry when they start, before
///   anybody can tell them not to, and only this variable stops it earlier.
/// * A variable of ours that is set to nothing counts as not set, as shells and scripts mean it.
#[expect(unsafe_code, reason = "nothing else runs yet, so nobody reads the environment meanwhile")]
pub(crate) fn prepare() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fix_threshold();
    let empty = std::env::vars_os().filter(|(name, value)| value.is_empty() && is_ours(&name.to_string_lossy()));
    let empty: Vec<_> = empty.map(|(name, _)| name).collect();
    // SAFETY: called first in `main`, before any thread is started.
    unsafe {
        std::env::set_var("ORT_DISABLE_TELEMETRY", "1");
        for name in empty {
            std::env::remove_var(name);
        }
    }
}

/// Begins anew, as the same process, with a variable that glibc reads before `main`.
///
/// glibc gives back at once what was allocated in pieces of 128 KiB or more, as weights are; but this threshold grows to
/// the largest piece that was ever freed, up to 32 MiB, unless somebody fixes it. Fifty swaps of a model of 25 MB took a
/// worker from 35 to 137 MB; with a fixed threshold they take it to 37.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn fix_threshold() {
    use std::os::unix::process::CommandExt as _;

    const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";
    const MARK: &str = "MUSTER_BEGUN_ANEW";
    // A mark of our own besides: for a program with capabilities of its own glibc takes its variables away.
    if [MARK, THRESHOLD, "GLIBC_TUNABLES"].iter().any(|name| std::env::var_os(name).is_some()) {
        return; // begun anew already, or somebody has other wishes
    }
    let (Ok(program), mut words) = (std::env::current_exe(), std::env::args_os()) else { return };
    let name = words.next().unwrap_or_else(|| program.clone().into());
    // Comes back only when it fails; then all is as it was, and some memory stays.
    let _ = std::process::Command::new(program).arg0(name).args(words).env(THRESHOLD, "131072").env(MARK, "1").exec();
}

fn is_ours(name: &str) -> bool {
    ["MUSTER_", "FASTCHAT_", "OPENAI_"].iter().any(|prefix| name.starts_with(prefix))
        || ["ORT_DYLIB_PATH", "RUST_LOG"].contains(&name)
}
