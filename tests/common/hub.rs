//! A hub on the loopback interface: the part of the Hugging Face hub's API that downloads use, and its faults.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as Parts, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The commit of every repository.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The token of whoever may see the gated repository.
pub(crate) const TOKEN: &str = "hf_right";
/// Bytes from which on a file is stored outside of git.
const LARGE: usize = 64 << 10;

/// A hub that runs until it is dropped.
pub(crate) struct Hub {
    /// Its base URL.
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// What goes wrong, and what was asked for.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Files whose first connection breaks half-way.
    pub(crate) cut: BTreeSet<String>,
    /// Files that come with a wrong byte.
    pub(crate) spoilt: BTreeSet<String>,
    /// Files that cannot be had for now.
    pub(crate) down: BTreeSet<String>,
    /// Contents that were asked for: file, and the `Range` header.
    pub(crate) contents: Vec<(String, Option<String>)>,
    /// Whether the store of large files was ever shown a token.
    pub(crate) leaked: bool,
}

struct Shared {
    repositories: BTreeMap<String, BTreeMap<String, Bytes>>,
    /// Base URL of the store of large files, which is another host.
    store: String,
    book: Mutex<Book>,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panic while holding it")
    }
}

/// The files of a folder of this project, as a repository has them.
pub(crate) fn files_of(folder: &str) -> BTreeMap<String, Bytes> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).expect("below it").to_str().expect("UTF-8").to_owned();
                files.insert(name, std::fs::read(&path).expect("a file").into());
            }
        }
    }
    files
}

impl Hub {
    /// Starts a hub with these repositories; `org/gated` wants [`TOKEN`].
    pub(crate) fn start(repositories: &[(&str, BTreeMap<String, Bytes>)]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        // Not `block_on`: tests have a runtime of their own.
        let listen = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("a socket of the system");
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).expect("a socket of the system")
        };
        let (front, store) = (listen(), listen());
        let url = |address: std::io::Result<SocketAddr>| format!("http://{}", address.expect("an address"));
        let endpoint = url(front.local_addr());
        let shared = Arc::new(Shared {
            repositories: repositories.iter().map(|(id, files)| ((*id).to_owned(), files.clone())).collect(),
            store: url(store.local_addr()),
            book: Mutex::default(),
        });
        let router = Router::new()
            .route("/api/models/{organisation}/{name}/revision/{revision}", get(repository))
            .route("/api/resolve-cache/models/{organisation}/{name}/{revision}/{*file}", get(small))
            .route("/{organisation}/{name}/resolve/{revision}/{*file}", get(resolve))
            .with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(front, router).await });
        let router = Router::new().route("/{organisation}/{name}/{*file}", get(large)).with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(store, router).await });
        Self { endpoint, shared, runtime: Some(runtime) }
    }

    /// What goes wrong, and what was asked for.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A status and the hub's code for it.
type Refusal = (StatusCode, &'static str);

fn refuse((status, code): Refusal) -> Response {
    let headers = [("x-error-code", code), ("x-error-message", "the hub's own words")];
    (status, headers).into_response()
}

/// The files of a repository that may be seen.
fn find<'a>(shared: &'a Shared, id: &str, headers: &HeaderMap) -> Result<&'a BTreeMap<String, Bytes>, Refusal> {
    let files = shared.repositories.get(id).ok_or((StatusCode::UNAUTHORIZED, "RepoNotFound"))?;
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match token.and_then(|token| token.strip_prefix("Bearer ")) {
        _ if id != "org/gated" => Ok(files),
        Some(TOKEN) => Ok(files),
        Some(_) => Err((StatusCode::FORBIDDEN, "GatedRepo")),
        None => Err((StatusCode::UNAUTHORIZED, "GatedRepo")),
    }
}

async fn repository(
    State(shared): State<Arc<Shared>>,
    Parts((organisation, name, revision)): Parts<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let id = format!("{organisation}/{name}");
    let files = match find(&shared, &id, &headers) {
        Ok(files) => files,
        Err(refusal) => return refuse(refusal),
    };
    if !is_revision(&revision) {
        return refuse((StatusCode::NOT_FOUND, "RevisionNotFound"));
    }
    let siblings: Vec<_> = files.keys().map(|name| json!({ "rfilename": name })).collect();
    axum::Json(json!({ "id": id, "modelId": id, "sha": COMMIT, "siblings": siblings, "tags": [] })).into_response()
}

fn is_revision(revision: &str) -> bool {
    ["main", "refs/pr/1", COMMIT].contains(&revision)
}

async fn resolve(
    State(shared): State<Arc<Shared>>,
    Parts((organisation, name, revision, file)): Parts<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let id = format!("{organisation}/{name}");
    let content = match find(&shared, &id, &headers).map(|files| files.get(&file)) {
        Err(refusal) => return refuse(refusal),
        _ if !is_revision(&revision) => return refuse((StatusCode::NOT_FOUND, "RevisionNotFound")),
        Ok(None) => return refuse((StatusCode::NOT_FOUND, "EntryNotFound")),
        Ok(Some(content)) => content,
    };
    let mut facts = vec![(HeaderName::from_static("x-repo-commit"), COMMIT.to_owned())];
    if content.len() < LARGE {
        facts.push((header::LOCATION, format!("/api/resolve-cache/models/{id}/{COMMIT}/{file}")));
        return redirect(StatusCode::TEMPORARY_REDIRECT, facts);
    }
    facts.extend([
        (header::LOCATION, format!("{}/{id}/{file}", shared.store)),
        (HeaderName::from_static("x-linked-etag"), format!("\"{}\"", sha256(content))),
        (HeaderName::from_static("x-linked-size"), content.len().to_string()),
    ]);
    redirect(StatusCode::FOUND, facts)
}

fn redirect(status: StatusCode, facts: Vec<(HeaderName, String)>) -> Response {
    let mut response = status.into_response();
    for (name, value) in facts {
        response.headers_mut().insert(name, value.parse().expect("a header"));
    }
    response
}

async fn small(
    State(shared): State<Arc<Shared>>,
    Parts((organisation, name, _, file)): Parts<(String, String, String, String)>,
    request: Request,
) -> Response {
    let content = &shared.repositories[&format!("{organisation}/{name}")][&file];
    let git = Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize();
    let mut response = send(&shared, &file, content, &request);
    let headers = response.headers_mut();
    headers.insert(header::ETAG, format!("\"{}\"", hex(&git)).parse().expect("a header"));
    headers.insert("x-repo-commit", COMMIT.parse().expect("a header"));
    response
}

async fn large(
    State(shared): State<Arc<Shared>>,
    Parts((organisation, name, file)): Parts<(String, String, String)>,
    request: Request,
) -> Response {
    if request.headers().contains_key(header::AUTHORIZATION) {
        shared.book().leaked = true;
    }
    let content = &shared.repositories[&format!("{organisation}/{name}")][&file];
    send(&shared, &file, content, &request)
}

/// The content from where the request's range begins, with the faults that are planned for it.
fn send(shared: &Shared, file: &str, content: &Bytes, request: &Request) -> Response {
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let from = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let mut rest = content.slice(from.unwrap_or(0)..);
    let mut book = shared.book();
    if request.method() == Method::GET {
        book.contents.push((file.to_owned(), range));
    }
    if book.down.contains(file) && request.method() == Method::GET {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if book.spoilt.contains(file) {
        let mut bytes = rest.to_vec();
        *bytes.last_mut().expect("a byte") ^= 1;
        rest = bytes.into();
    }
    let length = rest.len();
    let body = if request.method() == Method::GET && book.cut.remove(file) {
        let half = rest.slice(..length / 2);
        let broken = std::io::Error::other("the test breaks the connection");
        Body::from_stream(futures_util::stream::iter([Ok(half), Err(broken)]))
    } else {
        Body::from(rest)
    };
    let mut response = Response::new(body);
    if let Some(from) = from {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
        response.headers_mut().insert(header::CONTENT_RANGE, range.parse().expect("a header"));
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}

/// The name of a large file's content.
pub(crate) fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
