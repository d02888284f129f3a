//! stub
pub mod config;
pub mod error;
pub use config::Config;
pub use error::Error;

/// Serves until `shutdown`.
///
/// # Errors
/// See [`Error`].
pub async fn run(
    _config: Config,
    _listener: tokio::net::TcpListener,
    shutdown: tokio_util::sync::CancellationToken,
) -> Result<(), Error> {
    shutdown.cancelled().await;
    Ok(())
}
