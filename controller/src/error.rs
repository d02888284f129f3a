//! Why a controller stopped.

use std::io;

/// Why a controller stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its listener failed.
    #[error("the controller cannot take connections any more")]
    Listener(#[source] io::Error),
}
