//! Posts batches of spans.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use crate::secret::Secret;

/// Longest answer that is read, in bytes: a collector says which spans it did not take.
const ANSWER: u64 = 64 << 10;
/// Headers of a batch that are its own. The exporter adds those of `OTEL_EXPORTER_OTLP_HEADERS`, which would prevail over
/// what the command line says, and go to a collector that they are not meant for.
const OWN: [HeaderName; 3] = [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::USER_AGENT];

/// A client for the thread on which spans are sent, which may block.
pub(super) struct Sender {
    agent: Agent,
    /// Go along with each batch.
    headers: HeaderMap,
    /// Whether the last batch did not arrive; it is told once.
    failing: AtomicBool,
}

impl Sender {
    pub(super) fn new(timeout: Duration, given: &[(String, Secret)]) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            let wrong = || format!("the header {name} cannot be sent");
            let mut value = HeaderValue::try_from(value.expose()).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(HeaderName::try_from(name).map_err(|_| wrong())?, value);
        }
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
        Ok(Self { agent: agent.into(), headers, failing: AtomicBool::new(false) })
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = request.map(|body| body.to_vec());
        let exported = std::mem::replace(request.headers_mut(), self.headers.clone());
        for name in OWN {
            if let Some(value) = exported.get(&name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_headers_that_were_given_prevail_and_no_others_go_along() {
        let collector = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = collector.local_addr().expect("an address");
        let heard = std::thread::spawn(move || {
            let (mut stream, _) = collector.accept().expect("a connection");
            let lines = BufReader::new(stream.try_clone().expect("the same")).lines().map(|line| line.expect("text"));
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .expect("it is taken");
            head.join("\n").to_lowercase()
        });
        let given = [("x-key".to_owned(), Secret::new("the-flags")), ("x-more".to_owned(), Secret::new("too"))];
        let sender = Sender::new(Duration::from_secs(20), &given).expect("good headers");
        let batch = Request::post(format!("http://{address}/v1/traces"))
            .header("content-type", "application/x-protobuf")
            .header("x-key", "the-environments")
            .header("x-other", "the-environments")
            .body(Bytes::new())
            .expect("a request");
        assert_eq!(sender.send(batch).expect("an answer").status(), 200);
        let head = heard.join().expect("it ends");
        for line in ["content-type: application/x-protobuf", "x-key: the-flags", "x-more: too"] {
            assert!(head.contains(line), "{head}");
        }
        assert!(!head.contains("the-environments"), "{head}");
    }
}
