//! Asks the hub.

use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::{HeaderMap, Response, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, RequestBuilder};

use super::cache::is_plain;
use super::{HubConfig, HubError, HubModel};

/// What needs no escape in one part of a path.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same in a path.
const PATH: &AsciiSet = &PART.remove(b'/');
/// Longest wait for a connection or for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest silence within a download.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest list of files that is read, in bytes.
const LONGEST_LIST: u64 = 64 << 20;
/// Redirects that are followed for one answer.
const REDIRECTS: usize = 8;

/// A repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) commit: String,
    /// Paths of its files.
    pub(super) files: Vec<String>,
}

/// What the hub says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileFacts {
    /// Name of the content: SHA-256 of large files, git's SHA-1 of small ones.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
}

/// A client of the hub.
#[derive(Debug)]
pub(super) struct Api<'a> {
    config: &'a HubConfig,
    model: &'a HubModel,
    agent: Agent,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl<'a> Api<'a> {
    pub(super) fn new(config: &'a HubConfig, model: &'a HubModel) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0) // followed here, since the token must not go where they lead
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        Self { config, model, agent: agent.into() }
    }

    /// The commit of the model's revision, and the files there.
    pub(super) fn repository(&self) -> Result<Repository, HubError> {
        let HubModel { id, revision } = self.model;
        let revision = utf8_percent_encode(revision, PART);
        let url = format!("{}/api/models/{id}/revision/{revision}", self.config.endpoint);
        let mut response = self.get(&url, 0)?;
        let text = response.body_mut().with_config().limit(LONGEST_LIST).read_to_string();
        let text = text.map_err(|error| self.unreachable(&error))?;
        let unusable = |reason: String| HubError::Answer { url: url.clone(), reason };
        let listing: Listing = serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        if !is_plain(&listing.sha) {
            return Err(unusable(format!("`{}` is no commit", listing.sha)));
        }
        let files = listing.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Repository { commit: listing.sha, files })
    }

    fn url_of(&self, commit: &str, file: &str) -> String {
        let file = utf8_percent_encode(file, PATH);
        format!("{}/{}/resolve/{commit}/{file}", self.config.endpoint, self.model.id)
    }

    /// What a file is, before it is fetched.
    pub(super) fn facts(&self, commit: &str, file: &str) -> Result<FileFacts, HubError> {
        let mut url = self.url_of(commit, file);
        for _ in 0..REDIRECTS {
            let response = self.answered(&url, self.prepared(self.agent.head(&url), &url).call())?;
            let headers = response.headers();
            // Another place of the hub knows more; the place where contents are stored does not.
            let inside = location(&url, headers).filter(|next| origin(next) == origin(&url));
            match inside {
                Some(next) if text(headers, "x-linked-etag").is_none() => url = next,
                _ => return file_facts(headers).map_err(|reason| HubError::Answer { url, reason }),
            }
        }
        Err(HubError::Answer { url, reason: format!("more than {REDIRECTS} redirects") })
    }

    /// A file's content from a byte on; the answer may begin at 0 all the same.
    pub(super) fn content(&self, commit: &str, file: &str, from: u64) -> Result<Response<Body>, HubError> {
        self.get(&self.url_of(commit, file), from)
    }

    /// What lies at a URL, or where that leads to, from a byte on.
    fn get(&self, url: &str, from: u64) -> Result<Response<Body>, HubError> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let mut request = self.prepared(self.agent.get(&url), &url);
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = self.answered(&url, request.call())?;
            match location(&url, response.headers()) {
                Some(next) if response.status().is_redirection() => url = next,
                _ => return Ok(response),
            }
        }
        Err(HubError::Answer { url, reason: format!("more than {REDIRECTS} redirects") })
    }

    /// The request with what all have; the token is for the hub itself and for nobody else.
    fn prepared<B>(&self, request: RequestBuilder<B>, url: &str) -> RequestBuilder<B> {
        let request = request.header(header::ACCEPT_ENCODING, "identity");
        match &self.config.token {
            Some(token) if origin(url) == origin(&self.config.endpoint) => {
                request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()))
            }
            _ => request,
        }
    }

    /// An answer that is no refusal.
    fn answered(&self, url: &str, result: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, HubError> {
        let response = result.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        // 416: there is nothing from that byte on, which the caller sorts out.
        if status < 400 || status == 416 { Ok(response) } else { Err(self.refusal(url, status, response.headers())) }
    }

    fn refusal(&self, url: &str, status: u16, headers: &HeaderMap) -> HubError {
        let (id, endpoint) = (self.model.id.clone(), self.config.endpoint.clone());
        let reason = text(headers, "x-error-message").unwrap_or("it gives no reason").to_owned();
        match (status, text(headers, "x-error-code")) {
            (_, Some("RevisionNotFound")) => {
                HubError::UnknownRevision { id, revision: self.model.revision.clone(), endpoint }
            }
            (404, Some("EntryNotFound")) => HubError::FileMissing { id, file: url.to_owned() },
            (401 | 403, Some("GatedRepo")) => HubError::NoAccess { id, endpoint, reason },
            (404, _) | (401, Some("RepoNotFound")) => HubError::UnknownRepository { id, endpoint },
            // The hub says 401 of what does not exist too, so as not to tell what is private.
            (401, _) if self.config.token.is_none() => HubError::UnknownRepository { id, endpoint },
            (401, _) => HubError::NoAccess { id, endpoint, reason: format!("the hub refuses the token: {reason}") },
            (403, _) => HubError::NoAccess { id, endpoint, reason },
            // Busy or broken for now: as good as not there.
            (429 | 500.., _) => self.no_answer(format!("it answers with {status}: {reason}")),
            _ => HubError::Refused { url: url.to_owned(), status, reason },
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> HubError {
        let mut reason = error.to_string();
        if reason.contains("No CA certificates") {
            reason += "; install the package ca-certificates, or name a bundle in SSL_CERT_FILE";
        }
        self.no_answer(reason)
    }

    fn no_answer(&self, reason: String) -> HubError {
        let cache = self.config.cache.clone().unwrap_or_default();
        HubError::Unreachable { endpoint: self.config.endpoint.clone(), reason, cache }
    }
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find(['/', '?']).map_or(url, |length| &url[..host + length])
}

/// Where an answer of `url` leads to.
fn location(url: &str, headers: &HeaderMap) -> Option<String> {
    let place = text(headers, "location")?;
    let is_path = place.starts_with('/') && !place.starts_with("//");
    Some(if is_path { format!("{}{place}", origin(url)) } else { place.to_owned() })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn file_facts(headers: &HeaderMap) -> Result<FileFacts, String> {
    let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag")).ok_or("it has no ETag")?;
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    if !is_plain(etag) {
        return Err(format!("the ETag `{etag}` cannot name a file"));
    }
    let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length")).ok_or("it has no size")?;
    let size = size.parse().map_err(|_| format!("the size `{size}` is no number"))?;
    Ok(FileFacts { etag: etag.to_owned(), size })
}
