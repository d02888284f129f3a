//! Makes this process's environment fit, before anything reads it.

/// Must be the first call of `main`.
///
/// * `ORT_DISABLE_TELEMETRY` is set: ONNX Runtime's official libraries open their telemetry when they start, before
///   anybody can tell them not to, and only this variable stops it earlier.
/// * glibc gives back at once what was allocated in pieces of 128 KiB or more, as weights are: that is where it begins,
///   but its own threshold grows to the largest piece that was ever freed, up to 32 MiB. Fifty swaps of a model of 25 MB
///   took a worker from 35 to 137 MB; with a fixed threshold they take it to 37.
/// * A variable of ours that is set to nothing counts as not set, as shells and scripts mean it.
#[expect(unsafe_code, reason = "nothing else runs yet, so nobody reads the environment meanwhile")]
pub(crate) fn prepare() {
    let empty = std::env::vars_os().filter(|(name, value)| value.is_empty() && is_ours(&name.to_string_lossy()));
    let empty: Vec<_> = empty.map(|(name, _)| name).collect();
    // SAFETY: called first in `main`, before any thread is started.
    unsafe {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        std::env::set_var("ORT_DISABLE_TELEMETRY", "1");
        for name in empty {
            std::env::remove_var(name);
        }
    }
}

fn is_ours(name: &str) -> bool {
    ["MUSTER_", "FASTCHAT_", "OPENAI_"].iter().any(|prefix| name.starts_with(prefix))
        || ["ORT_DYLIB_PATH", "RUST_LOG"].contains(&name)
}
