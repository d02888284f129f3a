//! Takes the address a service listens on, if it may.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;

/// What protects a service from strangers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard {
    /// Whether callers must show a key, a token or a certificate.
    pub(crate) locked: bool,
    /// Whether the user wants it open all the same.
    pub(crate) insecure: bool,
    /// The flag that locks it.
    pub(crate) flag: &'static str,
    /// The flag that moves it to another port.
    pub(crate) port_flag: &'static str,
}

impl Guard {
    /// Of a service that other services call.
    pub(crate) fn token(locked: bool, insecure: Option<bool>) -> Self {
        Self { locked, insecure: insecure == Some(true), flag: "--fleet-token-file", port_flag: "--port" }
    }

    /// Of a service that clients call.
    pub(crate) fn keys(locked: bool, insecure: Option<bool>) -> Self {
        Self { flag: "--api-key-file", ..Self::token(locked, insecure) }
    }
}

/// Listens on `host:port` for a service; an open interface needs a lock.
///
/// # Errors
/// In one line, with a way out.
pub(crate) async fn bind(service: &str, host: &str, port: u16, guard: Guard) -> anyhow::Result<TcpListener> {
    let mut addresses = tokio::net::lookup_host((host, port))
        .await
        .with_context(|| format!("{service}: `{host}` is no interface of this machine"))?;
    let Some(address) = addresses.next() else { bail!("{service}: `{host}` is no interface of this machine") };
    if !address.ip().is_loopback() && !guard.locked && !guard.insecure {
        bail!(
            "{service}: {address} is open to other machines; protect it with {flag} or --tls-client-ca, \
             listen on 127.0.0.1, or say --insecure",
            flag = guard.flag
        );
    }
    TcpListener::bind(address).await.map_err(|error| refused(service, address, guard.port_flag, &error))
}

fn refused(service: &str, address: SocketAddr, flag: &str, error: &std::io::Error) -> anyhow::Error {
    let port = address.port();
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!("{service}: port {port} is in use; stop its owner, or choose another with {flag}")
        }
        std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{service}: no permission to listen on port {port}; choose one above 1023 with {flag}")
        }
        _ => anyhow::anyhow!("{service}: cannot listen on {address}: {error}"),
    }
}
