//! Lets in who shows a key.

use axum::extract::{Request, State as Shared};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;
use muster_shared::serve::presented_key;

use crate::openai::error;
use crate::state::State;

/// Middleware: where keys are set, a request needs one of them.
pub(crate) async fn require_key(Shared(state): Shared<State>, request: Request, next: Next) -> Response {
    match check(&state.keys, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => crate::outgoing::into_axum(error::response(&problem)),
    }
}

/// Whether a request may pass.
///
/// # Errors
/// [`Kind::BadKey`] where there are keys and it shows none of them.
pub(crate) fn check(keys: &[Secret], headers: &HeaderMap) -> Result<(), Problem> {
    if keys.is_empty() {
        return Ok(());
    }
    let message = match presented_key(headers) {
        // Every key is compared, so that the time does not tell which one was near.
        Some(given) if keys.iter().fold(false, |found, key| key.matches(given) | found) => return Ok(()),
        Some(_) => "the API key is wrong",
        None => "no API key was given; send `Authorization: Bearer KEY`",
    };
    Err(Problem::new(Kind::BadKey, message))
}
