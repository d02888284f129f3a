//! Why a gateway could not run.

/// Why [`crate::run`] gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The controller's address is no URL that can be called.
    #[error("controller address `{address}` is not a URL such as http://127.0.0.1:21001")]
    ControllerAddress {
        /// What was given.
        address: String,
    },
    /// The listener failed.
    #[error("cannot serve")]
    Serve(#[source] std::io::Error),
}
