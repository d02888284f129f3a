//! Posts batches of spans.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

/// Longest answer that is read, in bytes: a collector says which spans it did not take.
const ANSWER: u64 = 64 << 10;

/// A client for the thread on which spans are sent, which may block.
pub(super) struct Sender {
    agent: Agent,
    /// Whether the last batch did not arrive; it is told once.
    failing: AtomicBool,
}

impl Sender {
    pub(super) fn new(timeout: Duration) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(timeout))
            .build();
        Self { agent: agent.into(), failing: AtomicBool::new(false) }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = request.map(|body| body.to_vec());
        let (head, mut body) = self.agent.run(request)?.into_parts();
        let body = body.with_config().limit(ANSWER).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }

    /// Tells when batches begin or cease to arrive. What a collector says is not repeated: it may say anything.
    fn note(&self, sent: &Result<Response<Bytes>, HttpError>) {
        let failure = match sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answers {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        match (failure, self.failing.load(Ordering::Relaxed)) {
            (Some(error), false) => {
                tracing::warn!(error, "traces cannot be sent; requests go on without, and this is not said again");
                self.failing.store(true, Ordering::Relaxed);
            }
            (None, true) => {
                tracing::info!("traces are sent again");
                self.failing.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl HttpClient for Sender {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let sent = self.send(request);
            self.note(&sent);
            sent
        })
    }
}
