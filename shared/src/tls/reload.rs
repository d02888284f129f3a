//! The files again, when they have changed: whole or not at all.
//!
//! Whoever renews a certificate writes two files, one after the other. So what does not fit is looked at once more before
//! anybody is told, and until it fits the last good files are in force.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::Tls;
use super::files::{Files, Material};
use crate::problem::chain;
use crate::watch::{Sight, Watch};

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);
/// Time before the end of a certificate from which on there are warnings.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// Time between two warnings.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// What has been seen of the files.
#[derive(Default)]
pub(super) struct Looks {
    watches: Vec<Watch>,
    doubt: Doubt,
    /// When the end of the certificate was told last.
    warned: Option<Instant>,
}

/// How the last look ended.
#[derive(Default, PartialEq, Eq)]
enum Doubt {
    /// What is in the files is in force.
    #[default]
    None,
    /// It does not fit, and may be half written.
    New,
    /// It still does not fit; that has been told.
    Told,
}

impl Looks {
    /// Of files with these texts.
    pub(super) fn new(files: &Files, texts: Vec<String>) -> Self {
        let watches = files.paths().cloned().zip(texts).map(|(path, text)| Watch::new(path, text)).collect();
        Self { watches, ..Self::default() }
    }
}

/// Says what the metrics mean.
pub fn describe() {
    describe_counter!("muster_tls_reloads_total", "Times that certificates or keys had changed, by result");
    describe_gauge!("muster_tls_certificate_expiry_seconds", "When this service's certificate ends, in Unix time");
    describe_counter!("muster_tls_handshakes_failed_total", "Connections that ended before TLS was agreed upon");
}

impl Tls {
    /// Follows the files, for ever.
    pub async fn keep(&self) -> Infallible {
        if self.inner.files.paths().next().is_none() {
            return std::future::pending().await;
        }
        self.show_expiry();
        loop {
            tokio::time::sleep(LOOK).await;
            let tls = self.clone();
            let _ = tokio::task::spawn_blocking(move || tls.look()).await; // after a fault, too, the next look comes
        }
    }

    /// Looks once. Reads files: not for a thread of the runtime.
    fn look(&self) {
        let mut looks = self.inner.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut has_changed = false;
        for watch in &mut looks.watches {
            has_changed |= watch.look() != Sight::Same; // each is looked at
        }
        if has_changed || looks.doubt == Doubt::New {
            looks.doubt = match Material::read(&self.inner.files) {
                Ok((material, _)) => {
                    self.put_in_force(material);
                    looks.warned = None;
                    Doubt::None
                }
                Err(_) if has_changed => Doubt::New,
                Err(error) => {
                    counter!("muster_tls_reloads_total", "result" => "failed").increment(1);
                    tracing::warn!(
                        error = chain(&error),
                        "changed TLS files cannot be used; the ones before stay in force"
                    );
                    Doubt::Told
                }
            };
        }
        if looks.warned.is_none_or(|warned| warned.elapsed() > AGAIN) {
            looks.warned = Some(Instant::now());
            self.warn_of_expiry();
        }
    }

    fn put_in_force(&self, material: Material) {
        *self.inner.material.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(material);
        counter!("muster_tls_reloads_total", "result" => "ok").increment(1);
        let expiry = self.material().identity.as_ref().and_then(|identity| identity.expiry);
        let expiry = expiry.map(|expiry| expiry.to_string());
        tracing::info!(expiry, "changed TLS files are in force for new connections");
        self.show_expiry();
    }

    /// Puts the end of the certificate where metrics are read.
    fn show_expiry(&self) {
        if let Some(expiry) = self.material().identity.as_ref().and_then(|identity| identity.expiry) {
            let seconds = expiry.unix_duration().as_secs_f64();
            gauge!("muster_tls_certificate_expiry_seconds").set(seconds);
        }
    }

    fn warn_of_expiry(&self) {
        let Some(expiry) = self.material().identity.as_ref().and_then(|identity| identity.expiry) else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = expiry.unix_duration();
        if end <= now {
            tracing::warn!(%expiry, "this service's certificate (--tls-cert) has expired; renew it");
        } else if end - now < SOON {
            tracing::warn!(%expiry, "this service's certificate (--tls-cert) expires soon; renew it");
        }
    }
}
