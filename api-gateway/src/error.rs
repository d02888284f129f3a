//! Why a gateway could not run.

/// Why [`crate::run`] gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener failed.
    #[error("cannot serve")]
    Serve(#[source] std::io::Error),
}
