//! TLS on both ends of a connection, made of files that may change while a service runs.
//!
//! ```text
//!   files ─▶ Material (checked as a whole) ─▶ Tls ─┬─▶ Acceptor: connections that came
//!     ▲            reload: a look a second         └─▶ Connector, ClientConfig: connections that are made
//! ```
//!
//! * [`files`]: certificates, keys and authorities, and what is wrong with them.
//! * `reload`: the same again when they have changed.
//! * [`server`]: TLS with those who connect; [`client`]: with those who are called.
//! * [`stream`]: a connection with or without it.
//! * [`hint()`]: what to do about an error of a connection.
//!
//! TLS 1.2 and 1.3 and no older ones, with the suites that rustls chooses.

pub mod client;
pub mod files;
mod hint;
mod reload;
pub mod server;
pub mod stream;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::crypto::{CryptoProvider, ring};

pub use client::Connector;
pub use files::{Files, TlsError};
pub use hint::hint;
pub use reload::describe;
pub use server::{Acceptor, Protocols};
pub use stream::MaybeTls;

use files::Material;
use reload::Looks;

/// What a service shows of itself, and whom it trusts. Cheap to clone; clones see what is reloaded.
///
/// Without files, connections that come are not encrypted, and those that are made to `https://` addresses trust whom
/// the system trusts.
#[derive(Clone, Default)]
pub struct Tls {
    inner: Arc<Inner>,
    /// Whoever connects is answered without.
    calls_only: bool,
}

#[derive(Default)]
struct Inner {
    files: Files,
    /// In force.
    material: RwLock<Arc<Material>>,
    looks: Mutex<Looks>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`], when one of them cannot be used, or does not fit to another.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let (material, texts) = Material::read(&files)?;
        let looks = Mutex::new(Looks::new(&files, texts));
        let inner = Inner { files, material: RwLock::new(Arc::new(material)), looks };
        Ok(Self { inner: Arc::new(inner), calls_only: false })
    }

    /// The same for calls alone: connections that come are not encrypted.
    pub fn for_calls(&self) -> Self {
        Self { calls_only: true, ..self.clone() }
    }

    /// Whether connections that come are encrypted.
    pub fn is_served(&self) -> bool {
        self.has_certificate() && !self.calls_only
    }

    fn has_certificate(&self) -> bool {
        self.inner.files.cert.is_some()
    }

    /// Whether those who connect must show a certificate.
    pub fn is_locked(&self) -> bool {
        self.is_served() && self.inner.files.client_ca.is_some()
    }

    /// Of addresses at which this service is reached.
    pub fn scheme(&self) -> &'static str {
        if self.is_served() { "https" } else { "http" }
    }

    fn material(&self) -> Arc<Material> {
        Arc::clone(&self.inner.material.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.inner.files).finish() // no keys
    }
}

/// Primitives of cryptography for every connection of this process. They become rustls' default, so that whoever makes
/// a TLS client by other ways has the same.
///
/// # Panics
/// Never: rustls keeps a default once there is one.
pub fn provider() -> Arc<CryptoProvider> {
    if CryptoProvider::get_default().is_none() {
        let _ = ring::default_provider().install_default(); // another thread may have been faster
    }
    Arc::clone(CryptoProvider::get_default().expect("it was installed"))
}
