//! Keeps ONNX Runtime from reporting to its maker.

/// Must be the first call of `main`.
///
/// ONNX Runtime's official libraries open their telemetry when they start, before anybody can tell them not to; only
/// this variable stops it earlier. It is for a library in this process, so there is no other way to pass it.
#[expect(unsafe_code, reason = "nothing else runs yet, so nobody reads the environment meanwhile")]
pub(crate) fn off() {
    // SAFETY: called first in `main`, before any thread is started.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}
