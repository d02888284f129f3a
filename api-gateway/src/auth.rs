//! Lets in who shows a key.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use muster_shared::problem::{Kind, Problem};
use muster_shared::serve::presented_key;
use tracing::{Level, Span};

use crate::keys::ApiKey;
use crate::limits;
use crate::openai::error;
use crate::state::State;

/// Middleware: where keys are set, a request needs one of them.
pub(crate) async fn require_key(Shared(state): Shared<State>, mut request: Request, next: Next) -> Response {
    let address = request.extensions().get::<Peer>().map(|peer| peer.0);
    let key = match key(&state, request.headers(), address) {
        Ok(key) => key,
        Err(problem) => return crate::outgoing::into_axum(error::response(&problem)),
    };
    note(Span::current, key.as_deref());
    let mut answer = match limits::knock(&state, key.as_deref(), address) {
        Ok(()) => {
            request.extensions_mut().insert(Shown(key.clone()));
            next.run(request).await
        }
        Err(problem) => crate::outgoing::into_axum(error::response(&problem)),
    };
    key.iter().for_each(|key| limits::headers::write(key, answer.headers_mut()));
    answer
}

/// Where a request comes from, as an extension of those that go through the router.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// The key with which a request has passed, as an extension of it.
#[derive(Debug, Clone)]
pub(crate) struct Shown(pub(crate) Option<Arc<ApiKey>>);

/// The key with which a request from an address may pass; see [`check`]. One that may not pass is taken out of the bucket
/// of its address, so that nobody tries keys, or fills logs, faster than anybody else may ask. Good keys are not held up:
/// they may come from behind the same address.
///
/// # Errors
/// [`Kind::BadKey`] where there are keys and it shows none of them; [`Kind::RateLimited`] where that bucket is empty.
pub(crate) fn key(state: &State, headers: &HeaderMap, address: Option<IpAddr>) -> Result<Option<Arc<ApiKey>>, Problem> {
    check(&state.keys.now(), headers).or_else(|refused| {
        limits::knock(state, None, address)?;
        Err(refused)
    })
}

/// The key with which a request may pass; none where none is wanted.
///
/// # Errors
/// [`Kind::BadKey`] where there are keys and it shows none of them.
pub(crate) fn check(keys: &[Arc<ApiKey>], headers: &HeaderMap) -> Result<Option<Arc<ApiKey>>, Problem> {
    if keys.is_empty() {
        return Ok(None);
    }
    let message = match presented_key(headers) {
        Some(given) => {
            // Every key is compared, so that the time does not tell which one was near.
            let found = keys.iter().fold(None, |found, key| if key.secret.matches(given) { Some(key) } else { found });
            match found {
                Some(key) => return Ok(Some(Arc::clone(key))),
                None => "the API key is wrong",
            }
        }
        None => "no API key was given; send `Authorization: Bearer KEY`",
    };
    Err(Problem::new(Kind::BadKey, message))
}

/// Names a request's key in its span, which is not sought where nobody reads it.
pub(crate) fn note(span: impl FnOnce() -> Span, key: Option<&ApiKey>) {
    if let Some(key) = key.filter(|_| tracing::enabled!(Level::DEBUG)) {
        span().record("key", key.name.as_str());
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use muster_shared::secret::Secret;

    use super::*;

    fn checked(keys: &[&str], given: Option<&'static str>) -> Result<Option<String>, Kind> {
        let key = |key: &&str| ApiKey::named(key, Secret::new(*key), 0).expect("a name");
        let keys: Vec<_> = keys.iter().map(key).map(Arc::new).collect();
        let mut headers = HeaderMap::new();
        if let Some(given) = given {
            headers.insert("x-api-key", HeaderValue::from_static(given));
        }
        let key = check(&keys, &headers).map_err(|problem| problem.kind)?;
        Ok(key.map(|key| key.secret.expose().to_owned()))
    }

    #[test]
    fn a_request_passes_with_the_key_that_it_shows() {
        assert_eq!(checked(&["a", "b", "c"], Some("b")), Ok(Some("b".to_owned())));
        assert_eq!(checked(&["a", "b"], Some("c")), Err(Kind::BadKey));
        assert_eq!(checked(&["a", "b"], None), Err(Kind::BadKey));
        assert_eq!(checked(&[], Some("a")), Ok(None), "where no keys are wanted, none counts");
    }
}
