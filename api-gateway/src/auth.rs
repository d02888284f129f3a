//! Lets in who shows a key.

use axum::extract::{Request, State as Shared};
use axum::middleware::Next;
use axum::response::Response;
use muster_shared::problem::{Kind, Problem};
use muster_shared::serve::presented_key;

use crate::openai::error;
use crate::state::State;

/// Middleware: where keys are set, a request needs one of them.
pub(crate) async fn require_key(Shared(state): Shared<State>, request: Request, next: Next) -> Response {
    if state.keys.is_empty() {
        return next.run(request).await;
    }
    let message = match presented_key(request.headers()) {
        // Every key is compared, so that the time does not tell which one was near.
        Some(given) if state.keys.iter().fold(false, |found, key| key.matches(given) | found) => {
            return next.run(request).await;
        }
        Some(_) => "the API key is wrong",
        None => "no API key was given; send `Authorization: Bearer KEY`",
    };
    error::response(&Problem::new(Kind::BadKey, message))
}
