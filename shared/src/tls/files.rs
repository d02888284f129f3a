//! Certificates, keys and authorities in PEM.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::{DateTime, Decode as _};

use super::server::{self, Protocols};
use crate::watch;

/// Files of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The service's certificate, and those between it and its authority.
    pub cert: Option<PathBuf>,
    /// The key of that certificate.
    pub key: Option<PathBuf>,
    /// Authorities of which those who connect must show a certificate.
    pub client_ca: Option<PathBuf>,
    /// Authorities that are trusted in calls, in the place of the system's.
    pub ca: Option<PathBuf>,
}

impl Files {
    /// Those that are named.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert, &self.key, &self.client_ca, &self.ca].into_iter().flatten()
    }
}

/// The knob that names a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knob {
    /// The certificate.
    Cert,
    /// Its key.
    Key,
    /// Authorities of those who connect.
    ClientCa,
    /// Authorities of those who are called.
    Ca,
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cert => "--tls-cert",
            Self::Key => "--tls-key",
            Self::ClientCa => "--tls-client-ca",
            Self::Ca => "--tls-ca",
        })
    }
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{knob}: cannot read {}", path.display())]
    Unreadable {
        /// Who names it.
        knob: Knob,
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is no PEM.
    #[error("{knob}: {} is damaged: {reason}; expected PEM, as `openssl` writes it", path.display())]
    Damaged {
        /// Who names it.
        knob: Knob,
        /// Where it is.
        path: PathBuf,
        /// What is damaged.
        reason: String,
    },
    /// A file has no certificate.
    #[error("{knob}: {} holds no certificate{}; expected PEM with `-----BEGIN CERTIFICATE-----`", path.display(), instead(.has_key, "but a key"))]
    NoCertificate {
        /// Who names it.
        knob: Knob,
        /// Where it is.
        path: PathBuf,
        /// Whether there is a private key instead.
        has_key: bool,
    },
    /// A file has no key.
    #[error("--tls-key: {} holds no private key{}; expected PEM with `-----BEGIN PRIVATE KEY-----`", path.display(), instead(.has_certificate, "but a certificate"))]
    NoKey {
        /// Where it is.
        path: PathBuf,
        /// Whether there is a certificate instead.
        has_certificate: bool,
    },
    /// The key can be read with a passphrase only.
    #[error(
        "--tls-key: the key in {0} is locked with a passphrase, for which nobody can be asked; write it without one: \
         openssl pkey -in {0} -out NEW.key", path.display()
    )]
    Locked {
        /// Where it is.
        path: PathBuf,
    },
    /// Certificate and key are of two makes.
    #[error(
        "--tls-key: the key in {} does not belong to the first certificate in {} (--tls-cert); give the two that were \
         made together", key.display(), cert.display()
    )]
    Strangers {
        /// Where the certificate is.
        cert: PathBuf,
        /// Where the key is.
        key: PathBuf,
    },
    /// One of two is missing.
    #[error("{given} is given without {missing}; a certificate and its key go together")]
    Half {
        /// The one.
        given: Knob,
        /// The other.
        missing: Knob,
    },
    /// Clients cannot be asked for a certificate where there is no TLS.
    #[error(
        "--tls-client-ca is given without --tls-cert and --tls-key; a service that asks for certificates needs one of \
         its own"
    )]
    Doorless,
}

fn instead(is_there: &bool, what: &str) -> String {
    if *is_there { format!(" {what}") } else { String::new() }
}

/// What becomes of the files, as a whole.
#[derive(Default)]
pub(super) struct Material {
    pub(super) identity: Option<Identity>,
    /// Who is trusted in calls; absent: whom the system trusts.
    pub(super) trust: Option<Arc<dyn ServerCertVerifier>>,
}

/// A certificate with its key.
pub(super) struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    /// For each of [`Protocols`].
    pub(super) servers: [Arc<ServerConfig>; 3],
    /// When the certificate ends, as far as that can be told.
    pub(super) expiry: Option<DateTime>,
}

impl Material {
    /// Reads the files, and checks that they fit. Gives their texts besides, in the order of [`Files::paths`].
    pub(super) fn read(files: &Files) -> Result<(Self, Vec<String>), TlsError> {
        let mut texts = Vec::new();
        let mut text = |knob, path: &Path| {
            let read = watch::read(path);
            let text = read.map_err(|source| TlsError::Unreadable { knob, path: path.to_owned(), source })?;
            texts.push(text.clone());
            Ok(text)
        };
        let certified = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(Knob::Cert, cert, &text(Knob::Cert, cert)?)?;
                let secret = private_key(key, &text(Knob::Key, key)?)?;
                Some(certified((cert, chain), (key, secret))?)
            }
            (Some(_), None) => return Err(TlsError::Half { given: Knob::Cert, missing: Knob::Key }),
            (None, Some(_)) => return Err(TlsError::Half { given: Knob::Key, missing: Knob::Cert }),
            (None, None) if files.client_ca.is_some() => return Err(TlsError::Doorless),
            (None, None) => None,
        };
        let clients = match &files.client_ca {
            Some(path) => Some(client_verifier(path, &text(Knob::ClientCa, path)?)?),
            None => None,
        };
        let trust = match &files.ca {
            Some(path) => Some(server_verifier(path, &text(Knob::Ca, path)?)?),
            None => None,
        };
        let identity = certified.map(|certified| Identity::new(certified, clients));
        Ok((Self { identity, trust }, texts))
    }
}

impl Identity {
    fn new(certified: CertifiedKey, clients: Option<Arc<dyn ClientCertVerifier>>) -> Self {
        let certified = Arc::new(certified);
        let expiry = certified.cert.first().and_then(|certificate| expiry(certificate));
        let servers = Protocols::ALL.map(|protocols| server::config(&certified, clients.clone(), protocols));
        Self { certified, servers, expiry }
    }
}

/// When a certificate ends.
fn expiry(certificate: &CertificateDer<'_>) -> Option<DateTime> {
    Some(Certificate::from_der(certificate).ok()?.tbs_certificate.validity.not_after.to_date_time())
}

/// All certificates of a file.
fn certificates(knob: Knob, path: &Path, text: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let found = read.map_err(|error| damaged(knob, path, in_words(error)))?;
    if found.is_empty() {
        let has_key = PrivateKeyDer::from_pem_slice(text.as_bytes()).is_ok();
        return Err(TlsError::NoCertificate { knob, path: path.to_owned(), has_key });
    }
    Ok(found)
}

fn private_key(path: &Path, text: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    let is_locked = text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED");
    match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
        _ if is_locked => Err(TlsError::Locked { path: path.to_owned() }),
        Ok(key) => {
            warn_if_open(path);
            Ok(key)
        }
        Err(pem::Error::NoItemsFound) => {
            let has_certificate = CertificateDer::from_pem_slice(text.as_bytes()).is_ok();
            Err(TlsError::NoKey { path: path.to_owned(), has_certificate })
        }
        Err(error) => Err(damaged(Knob::Key, path, in_words(error))),
    }
}

/// What is wrong with a PEM file. The library shows the bytes of a line that is missing.
fn in_words(error: pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("the line `-----END {}-----` is missing", String::from_utf8_lossy(&end_marker))
        }
        other => other.to_string(),
    }
}

/// The two together, if they are.
fn certified(
    (cert, chain): (&Path, Vec<CertificateDer<'static>>),
    (key, secret): (&Path, PrivateKeyDer<'static>),
) -> Result<CertifiedKey, TlsError> {
    let signing = super::provider().key_provider.load_private_key(secret);
    let signing = signing.map_err(|error| damaged(Knob::Key, key, error.to_string()))?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(TlsError::Strangers { cert: cert.to_owned(), key: key.to_owned() })
        }
        Err(error) => Err(damaged(Knob::Cert, cert, error.to_string())),
    }
}

fn client_verifier(path: &Path, text: &str) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(authorities(Knob::ClientCa, path, text)?);
    let built = WebPkiClientVerifier::builder_with_provider(roots, super::provider()).build();
    built.map_err(|error| damaged(Knob::ClientCa, path, error.to_string()))
}

fn server_verifier(path: &Path, text: &str) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let roots = Arc::new(authorities(Knob::Ca, path, text)?);
    let built = WebPkiServerVerifier::builder_with_provider(roots, super::provider()).build();
    Ok(built.map_err(|error| damaged(Knob::Ca, path, error.to_string()))?)
}

fn authorities(knob: Knob, path: &Path, text: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(knob, path, text)? {
        roots.add(authority).map_err(|error| damaged(knob, path, error.to_string()))?;
    }
    Ok(roots)
}

fn damaged(knob: Knob, path: &Path, reason: String) -> TlsError {
    TlsError::Damaged { knob, path: path.to_owned(), reason }
}

/// A key that everybody may read is everybody's key.
#[cfg(unix)]
fn warn_if_open(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;

    let is_open = std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0);
    if is_open {
        let path = path.display();
        tracing::warn!("--tls-key: every user of this machine can read the key in {path}; chmod 600 {path}");
    }
}

#[cfg(not(unix))]
fn warn_if_open(_: &Path) {}

#[cfg(test)]
mod tests;
