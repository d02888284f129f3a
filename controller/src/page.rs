//! The status page: its files, open to everybody. What it shows comes from `GET /topology` and `GET /events`, with a key
//! where one is wanted.

use axum::Router;
use muster_shared::assets::{self, Asset, COMMON};

/// Takes the files of `controller/assets/` by name.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(Asset::new(concat!("/assets/", $name), include_bytes!(concat!("../assets/", $name)))),*]
    };
}

const INDEX: Asset = Asset::new("/", include_bytes!("../assets/index.html"));
const FILES: [Asset; 19] = files![
    "status.css",
    "charts.css",
    "map.css",
    "table.css",
    "lists.css",
    "details.css",
    "main.js",
    "fleet.js",
    "stream.js",
    "words.js",
    "charts.js",
    "graph.js",
    "picture.js",
    "cells.js",
    "table.js",
    "details.js",
    "lists.js",
    "actions.js",
    "header.js",
];

/// The page at `/`, and its files below `/assets/`.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    assets::routes(COMMON.into_iter().chain(FILES).chain([INDEX]))
}
