//! One call to a FastChat worker, and the ways in which it fails.

use muster_shared::client::ClientError;
use muster_shared::fastchat::error_code;
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest error body that is read, in bytes.
const PROBLEM_LIMIT: usize = 64 << 10;

/// A FastChat worker at a base URL.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    http: reqwest::Client,
    pub(super) address: String,
    token: Option<Secret>,
}

impl Worker {
    pub(super) fn new(http: reqwest::Client, address: &str, token: Option<Secret>) -> Self {
        Self { http, address: address.trim_end_matches('/').to_owned(), token }
    }

    /// Posts a body and reads the reply, or the error frame in its place.
    pub(super) async fn ask<Reply: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Reply, ClientError> {
        let response = self.post(path, body).await?;
        let body = response.bytes().await.map_err(|source| self.broken(source))?;
        // FastChat reports failures with status 200 and an error frame for a body.
        let verdict: Verdict = serde_json::from_slice(&body).map_err(|error| self.junk(error.to_string()))?;
        if verdict.error_code != 0 {
            return Err(self.refused(problem_of(verdict.error_code, verdict.text)));
        }
        serde_json::from_slice(&body).map_err(|error| self.junk(error.to_string()))
    }

    /// Posts a body; gives the response when its status is a success.
    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> Result<reqwest::Response, ClientError> {
        let request = self.http.post(format!("{}{path}", self.address)).json(body);
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        };
        let response = request.send().await.map_err(|source| self.broken(source))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    async fn refusal(&self, mut response: reqwest::Response) -> ClientError {
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while body.len() < PROBLEM_LIMIT
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk);
        }
        // Our own workers speak FastChat's words too, and refuse in ours.
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => self.refused(problem),
            Err(_) => self.unexpected(status, String::from_utf8_lossy(&body).chars().take(200).collect()),
        }
    }

    pub(super) fn broken(&self, source: reqwest::Error) -> ClientError {
        ClientError::from_reqwest(&self.address, source)
    }

    /// A stream that ended before its last frame.
    pub(super) fn broke_off(&self) -> ClientError {
        ClientError::Broken { address: self.address.clone(), source: None }
    }

    pub(super) fn refused(&self, problem: Problem) -> ClientError {
        ClientError::Refused { address: self.address.clone(), problem }
    }

    /// A body with status 200 that is not FastChat's.
    pub(super) fn junk(&self, detail: impl Into<String>) -> ClientError {
        self.unexpected(200, detail.into())
    }

    fn unexpected(&self, status: u16, detail: String) -> ClientError {
        ClientError::Unexpected { address: self.address.clone(), status, detail }
    }
}

/// The part of a reply that tells an error frame.
#[derive(Deserialize)]
struct Verdict {
    #[serde(default)]
    error_code: u32,
    #[serde(default)]
    text: String,
}

/// The problem that an error frame tells of.
pub(super) fn problem_of(code: u32, text: String) -> Problem {
    match code {
        error_code::CONTEXT_OVERFLOW => Problem::new(Kind::PromptTooLong, text),
        error_code::INVALID_MODEL => Problem::new(Kind::UnknownModel, text),
        error_code::VALIDATION | error_code::PARAM_OUT_OF_RANGE => Problem::new(Kind::Invalid, text),
        // Rate limit, quota, overload: FastChat says no time, and a second frees a slot on a busy worker.
        42901..=error_code::ENGINE_OVERLOADED => Problem::new(Kind::Overloaded, text).with_retry_after_ms(1000),
        error_code::CONTROLLER_NO_WORKER => Problem::new(Kind::NoWorker, text),
        _ => Problem::new(Kind::Upstream, text),
    }
}
