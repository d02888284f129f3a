//! TLS with those who are called.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::stream::MaybeTls;
use super::{Tls, provider};

impl Tls {
    /// For calls over HTTP/1.1. What it shows and trusts follows the files.
    ///
    /// # Panics
    /// Never: the provider has what rustls asks for.
    pub fn client_config(&self) -> ClientConfig {
        self.config("http/1.1")
    }

    /// Makes connections that speak HTTP/1.1.
    pub fn connector(&self) -> Connector {
        Connector(Arc::new(self.config("http/1.1")))
    }

    /// Makes connections that speak HTTP/2.
    pub fn grpc_connector(&self) -> Connector {
        Connector(Arc::new(self.config("h2")))
    }

    fn config(&self, protocol: &str) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("the provider has suites of both versions").dangerous();
        let builder = builder.with_custom_certificate_verifier(Arc::new(Trust(self.clone())));
        let mut config = builder.with_client_cert_resolver(Arc::new(Shown(self.clone())));
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        // Connections are kept, so handshakes are few; and who is resumed is not looked at again.
        config.resumption = Resumption::disabled();
        config
    }
}

/// Encrypts connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connector(Arc<ClientConfig>);

impl Connector {
    /// Agrees with whoever answers, who must be the one of that name; `host` is one, or an IP address.
    ///
    /// # Errors
    /// Why there is no agreement.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<MaybeTls> {
        let host = host.trim_matches(['[', ']']); // of an IPv6 address
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await?;
        Ok(MaybeTls::Tls(Box::new(stream.into())))
    }
}

/// The certificate in force.
struct Shown(Tls);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.material().identity.as_ref().map(|identity| Arc::clone(&identity.certified))
    }

    fn has_certs(&self) -> bool {
        self.0.has_certificate()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

/// The authorities in force.
#[derive(Debug)]
struct Trust(Tls);

impl Trust {
    fn verifier(&self) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        match &self.0.material().trust {
            Some(trust) => Ok(Arc::clone(trust)),
            None => system(),
        }
    }
}

/// Whom the system trusts. Its files are read when somebody is asked by https for the first time, and not before.
fn system() -> Result<Arc<dyn ServerCertVerifier>, Error> {
    static SYSTEM: OnceLock<Result<Arc<Verifier>, Error>> = OnceLock::new();
    match SYSTEM.get_or_init(|| Verifier::new(provider()).map(Arc::new)) {
        Ok(verifier) => Ok(Arc::<Verifier>::clone(verifier)),
        Err(error) => Err(error.clone()),
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier()?.verify_server_cert(certificate, between, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
