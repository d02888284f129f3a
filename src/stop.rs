//! Stopping on a signal: the first asks to drain, the second ends the process.

use muster_shared::serve::Signals;
use tokio_util::sync::CancellationToken;

/// Exit code of a process that was told to stop twice: 128 and SIGINT, as shells have it.
const STOPPED_TWICE: i32 = 130;

/// A token that is cancelled by SIGTERM or Ctrl-C. A second signal ends the process at once.
///
/// Must be called inside the runtime.
pub(crate) fn on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let mut signals = Signals::install();
    let stopping = stop.clone();
    // Lives as long as the process: whoever drains must still hear the second signal.
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("stopping; a second signal ends the process at once");
        stopping.cancel();
        signals.next().await;
        end();
    });
    stop
}

#[expect(clippy::disallowed_methods, reason = "the user wants no guard to run any more")]
fn end() -> ! {
    std::process::exit(STOPPED_TWICE)
}
