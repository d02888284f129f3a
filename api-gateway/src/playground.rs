//! The playground: a page that talks to the models behind this gateway over its own API. Its files are open to
//! everybody; what it asks needs a key like every other request.

use axum::Router;
use muster_shared::assets::{self, Asset, COMMON};

/// Takes the files of `api-gateway/assets/` by name.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(Asset::new(concat!("/assets/", $name), include_bytes!(concat!("../assets/", $name)))),*]
    };
}

const INDEX: Asset = Asset::new("/", include_bytes!("../assets/index.html"));
const FILES: [Asset; 7] =
    files!["playground.css", "main.js", "tabs.js", "chat.js", "answer.js", "embeddings.js", "curl.js"];

/// The page at `/`, and its files below `/assets/`.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    assets::routes(COMMON.into_iter().chain(FILES).chain([INDEX]))
}
