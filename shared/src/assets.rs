//! Files of web pages, which lie in the binary: no folder must be installed beside it.
//!
//! A browser may keep a file but asks each time whether it is still the same, so that a page of one version never runs
//! with a script of another.

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// What a page may do: load what its own server has, talk to its own server, and nothing else. Neither a script in a
/// name that somebody chose nor a page that frames this one gets anywhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What every page of ours uses: the look, the theme, the key, the icon.
pub const COMMON: [Asset; 6] = [
    Asset::new("/assets/base.css", include_bytes!("../assets/base.css")),
    Asset::new("/assets/theme.js", include_bytes!("../assets/theme.js")),
    Asset::new("/assets/dom.js", include_bytes!("../assets/dom.js")),
    Asset::new("/assets/key.js", include_bytes!("../assets/key.js")),
    Asset::new("/assets/sse.js", include_bytes!("../assets/sse.js")),
    Asset::new("/assets/icon.svg", include_bytes!("../assets/icon.svg")),
];

/// One file.
#[derive(Debug, Clone, Copy)]
pub struct Asset {
    path: &'static str,
    bytes: &'static [u8],
}

impl Asset {
    /// What is served at `path`; a path without an ending is a page.
    pub const fn new(path: &'static str, bytes: &'static [u8]) -> Self {
        Self { path, bytes }
    }

    fn content_type(self) -> &'static str {
        match self.path.rsplit_once('.').map(|(_, ending)| ending) {
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        }
    }

    /// A name of its content: FNV-1a over 64 bits, which need not withstand anybody since nobody else makes these files.
    fn tag(self) -> String {
        let mixed = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        format!("\"{:016x}\"", self.bytes.iter().fold(0xcbf2_9ce4_8422_2325, mixed))
    }

    fn answer(self, tag: &str, asked: &HeaderMap) -> Response {
        let mut headers = HeaderMap::new();
        let mut set = |name, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(header::ETAG, tag);
        set(header::CACHE_CONTROL, "no-cache");
        set(header::CONTENT_SECURITY_POLICY, POLICY);
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(header::REFERRER_POLICY, "no-referrer");
        if has(asked, tag) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        set(header::CONTENT_TYPE, self.content_type());
        (headers, self.bytes).into_response()
    }
}

/// Whether the one who asks has the file already.
fn has(asked: &HeaderMap, tag: &str) -> bool {
    let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = known.flat_map(|tags| tags.split(',')).map(str::trim);
    tags.any(|known| known == "*" || known.trim_start_matches("W/") == tag)
}

/// Serves files to everybody: they hold no data.
pub fn routes<S: Clone + Send + Sync + 'static>(files: impl IntoIterator<Item = Asset>) -> Router<S> {
    files.into_iter().fold(Router::new(), |router, file| {
        let tag = file.tag();
        router.route(file.path, get(async move |asked: HeaderMap| file.answer(&tag, &asked)))
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Method, Request};
    use tower::Service as _;

    use super::*;

    const FILES: [Asset; 3] = [
        Asset::new("/", b"<!doctype html>"),
        Asset::new("/assets/a.js", b"export {}"),
        Asset::new("/assets/b.js", b"export { }"),
    ];

    async fn ask(method: Method, path: &str, known: Option<&str>) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(known) = known {
            request = request.header(header::IF_NONE_MATCH, known);
        }
        let request = request.body(Body::empty()).expect("a request");
        routes(FILES).call(request).await.expect("an answer")
    }

    fn text<'a>(response: &'a Response, name: &str) -> &'a str {
        response.headers().get(name).map_or("", |value| value.to_str().expect("a text"))
    }

    #[tokio::test]
    async fn a_file_comes_with_its_type_and_a_policy_that_lets_nothing_foreign_in() {
        for (path, kind) in [("/", "text/html; charset=utf-8"), ("/assets/a.js", "text/javascript; charset=utf-8")] {
            let response = ask(Method::GET, path, None).await;
            assert_eq!((response.status(), text(&response, "content-type")), (StatusCode::OK, kind), "{path}");
            assert_eq!(text(&response, "x-content-type-options"), "nosniff");
            assert!(text(&response, "content-security-policy").starts_with("default-src 'none'; script-src 'self';"));
        }
        assert_eq!(ask(Method::GET, "/assets/c.js", None).await.status(), StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_file_is_read_and_nothing_else() {
        assert_eq!(ask(Method::HEAD, "/", None).await.status(), StatusCode::OK);
        assert_eq!(ask(Method::POST, "/", None).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn a_file_that_is_known_already_is_not_sent_again() {
        let tag = text(&ask(Method::GET, "/assets/a.js", None).await, "etag").to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let response = ask(Method::GET, "/assets/a.js", Some(&known)).await;
            assert_eq!((response.status(), text(&response, "etag")), (StatusCode::NOT_MODIFIED, &*tag), "{known}");
        }
        let other = ask(Method::GET, "/assets/b.js", Some(&tag)).await;
        assert_eq!(other.status(), StatusCode::OK, "another content has another tag");
    }
}
