//! TLS with those who connect.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::stream::MaybeTls;
use super::{Tls, provider};

/// Time in which a client must have agreed with us.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// First byte of TLS: a record of the handshake.
const RECORD: u8 = 22;
/// What a client hears that does not speak TLS.
const NO_TLS: &str = "this port speaks https; write https:// in the address, instead of http://\n";
/// Time for a client to take these words and leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is spoken inside of TLS, in the order in which it is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocols {
    /// HTTP/2, then HTTP/1.1.
    Http,
    /// HTTP/1.1, then HTTP/2: only the first can become something else.
    Upgrades,
    /// HTTP/2 alone.
    Grpc,
}

impl Protocols {
    pub(super) const ALL: [Self; 3] = [Self::Http, Self::Upgrades, Self::Grpc];

    fn names(self) -> Vec<Vec<u8>> {
        let names: &[&str] = match self {
            Self::Http => &["h2", "http/1.1"],
            Self::Upgrades => &["http/1.1", "h2"],
            Self::Grpc => &["h2"],
        };
        names.iter().map(|name| name.as_bytes().to_vec()).collect()
    }
}

/// A new one for each set of files: sessions that clients would resume end with it, so that whoever comes afterwards
/// sees the new certificate, and is asked for one that is still good.
pub(super) fn config(
    certified: &Arc<CertifiedKey>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    protocols: Protocols,
) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has suites of both versions");
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified))));
    config.alpn_protocols = protocols.names();
    Arc::new(config)
}

/// Meets those who connect to one port. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Acceptor(Option<(Tls, Protocols)>);

impl Tls {
    /// Meets those who connect, as these files say.
    pub fn acceptor(&self, protocols: Protocols) -> Acceptor {
        Acceptor(self.is_served().then(|| (self.clone(), protocols)))
    }
}

impl Acceptor {
    /// Whether it speaks TLS.
    pub fn is_secure(&self) -> bool {
        self.0.is_some()
    }

    /// Agrees with a client. `None`: it is none of ours, and has been told so where it can be.
    pub async fn accept(&self, stream: TcpStream) -> Option<MaybeTls> {
        let Some((tls, protocols)) = &self.0 else { return Some(MaybeTls::Plain(stream)) };
        let material = tls.material();
        let config = material.identity.as_ref().map(|identity| Arc::clone(&identity.servers[*protocols as usize]))?;
        match timeout(HANDSHAKE, agree(stream, config)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                metrics::counter!("muster_tls_handshakes_failed_total").increment(1);
                tracing::debug!(%error, "no TLS with a client");
                None
            }
            Err(_) => {
                metrics::counter!("muster_tls_handshakes_failed_total").increment(1);
                tracing::debug!("a client has not ended its TLS handshake within {} s", HANDSHAKE.as_secs());
                None
            }
        }
    }
}

async fn agree(stream: TcpStream, config: Arc<ServerConfig>) -> std::io::Result<MaybeTls> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(std::io::Error::other("it left without a word")); // as probes of balancers do
    }
    if first[0] != RECORD {
        refuse(stream).await;
        return Err(std::io::Error::other("it does not speak TLS"));
    }
    match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(stream) => Ok(MaybeTls::Tls(Box::new(stream.into()))),
        Err((error, stream)) => {
            part(stream).await; // it has been told why
            Err(error)
        }
    }
}

/// Tells a client that it needs TLS, in the words that it has.
async fn refuse(mut stream: TcpStream) {
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n";
    let answer = format!("{head}content-length: {}\r\n\r\n{NO_TLS}", NO_TLS.len());
    // It may have left.
    if matches!(timeout(FAREWELL, stream.write_all(answer.as_bytes())).await, Ok(Ok(()))) {
        part(stream).await;
    }
}

/// Reads what a client has sent before it heard that we part: to close at once would take back what it was told.
async fn part(mut stream: TcpStream) {
    let parting = async {
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    let _ = timeout(FAREWELL, parting).await;
}
