//! Why a gateway could not run.

/// Why [`crate::run`] gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system gave no thread, or nothing for it to wait with.
    #[error("cannot start a thread that serves clients")]
    Thread(#[source] std::io::Error),
}
