//! TLS: what a service shows of itself, and whom it trusts.

use std::path::PathBuf;

use clap::Args;
use muster_shared::tls::{Files, Tls};
use serde::{Deserialize, Serialize};

use super::or;

/// Files of a service, which is called and calls others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsSection {
    /// Certificate of this service in PEM, with those between it and its authority: it is reached by https then.
    ///
    /// It is shown to services that are called, too. All files are read again when they change.
    #[arg(long = "tls-cert", id = "tls_cert", env = "MUSTER_TLS_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cert: Option<PathBuf>,
    /// Key of that certificate, without a passphrase.
    #[arg(long = "tls-key", id = "tls_key", env = "MUSTER_TLS_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<PathBuf>,
    /// Authorities of which all who connect must show a certificate.
    #[arg(long = "tls-client-ca", id = "tls_client_ca", env = "MUSTER_TLS_CLIENT_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_ca: Option<PathBuf>,
    /// Authorities that are trusted in calls to the fleet's services; those of the system when absent.
    #[arg(long = "tls-ca", id = "tls_ca", env = "MUSTER_TLS_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
}

impl TlsSection {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; client_ca, ca; (cert, key))
    }

    /// Whether nothing is said.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn load(&self) -> anyhow::Result<Tls> {
        let Self { cert, key, client_ca, ca } = self.clone();
        Ok(Tls::load(Files { cert, key, client_ca, ca })?)
    }
}

/// Files of one who only calls others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "TLS")]
pub(crate) struct CallerTls {
    /// Certificate to show to those who want one, in PEM.
    #[arg(long = "tls-cert", id = "tls_cert", env = "MUSTER_TLS_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cert: Option<PathBuf>,
    /// Key of that certificate, without a passphrase.
    #[arg(long = "tls-key", id = "tls_key", env = "MUSTER_TLS_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<PathBuf>,
    /// Authorities that are trusted by https; those of the system when absent.
    #[arg(long = "tls-ca", id = "tls_ca", env = "MUSTER_TLS_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
}

impl CallerTls {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; ca; (cert, key))
    }

    /// Whether nothing is said.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn load(&self) -> anyhow::Result<Tls> {
        let Self { cert, key, ca } = self.clone();
        Ok(Tls::load(Files { cert, key, ca, client_ca: None })?)
    }
}
