//! Why a model of the hub cannot be had.

use std::io;
use std::path::PathBuf;

use crate::model::ModelError;

/// Why a model of the hub cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor a repository.
    #[error(
        "`{id}` is no folder here, and {endpoint} has no repository of that name that may be seen without a token \
         for it; give a folder, or ORG/NAME of a repository, with HF_TOKEN set if it is private"
    )]
    UnknownRepository {
        /// The repository.
        id: String,
        /// The hub's base URL.
        endpoint: String,
    },
    /// The repository's owner wants something first.
    #[error(
        "no access to `{id}` ({reason}); ask for it at {endpoint}/{id} and set HF_TOKEN to a token of your account"
    )]
    NoAccess {
        /// The repository.
        id: String,
        /// The hub's base URL.
        endpoint: String,
        /// The hub's words.
        reason: String,
    },
    /// The repository is there, the revision is not.
    #[error("`{id}` has no revision `{revision}`; {endpoint}/{id}/tree/main lists its branches and tags")]
    UnknownRevision {
        /// The repository.
        id: String,
        /// What was asked for.
        revision: String,
        /// The hub's base URL.
        endpoint: String,
    },
    /// A file that the model needs is not in the repository.
    #[error("`{id}` has no file {file}, which its own files name")]
    FileMissing {
        /// The repository.
        id: String,
        /// The file.
        file: String,
    },
    /// Not an ONNX model.
    #[error(
        "`{id}` holds no ONNX graph, only {found}; look for an export of it, for instance at \
         {endpoint}/onnx-community, or make one with Optimum or onnxruntime-genai's model builder"
    )]
    NoOnnx {
        /// The repository.
        id: String,
        /// The hub's base URL.
        endpoint: String,
        /// Some of its files.
        found: String,
    },
    /// Several models in one repository.
    #[error("`{id}` holds several models; say which with --variant: {folders}")]
    SeveralModels {
        /// The repository.
        id: String,
        /// The folders with models.
        folders: String,
    },
    /// No connection.
    #[error(
        "cannot reach the hub at {endpoint} ({reason}), and the model is not in the cache at {}; if a folder was meant, \
         there is none of that name", .cache.display()
    )]
    Unreachable {
        /// The hub's base URL.
        endpoint: String,
        /// What happened.
        reason: String,
        /// Folder of the cache.
        cache: PathBuf,
    },
    /// The hub answers with an error that is none of the above.
    #[error("the hub answers {url} with {status}: {reason}")]
    Refused {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// The hub's words.
        reason: String,
    },
    /// The hub's answer makes no sense.
    #[error("the hub's answer to {url} is not what a hub answers: {reason}; is HF_ENDPOINT right?")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection broke again and again.
    #[error(
        "the download of {file} broke off after {done} of {size} bytes ({reason}); what is there is kept, start again"
    )]
    Broken {
        /// The file.
        file: String,
        /// Bytes on disk.
        done: u64,
        /// Bytes in all.
        size: u64,
        /// What happened last.
        reason: String,
    },
    /// The bytes are not those that the hub promised.
    #[error("{file} came with the checksum {found} instead of {expected}; it was removed, start again")]
    Checksum {
        /// The file.
        file: String,
        /// What the hub promised.
        expected: String,
        /// What came.
        found: String,
    },
    /// No room.
    #[error(
        "the disk of {} is full: {file} needs {size} bytes; make room, or set HF_HUB_CACHE to another folder",
        .folder.display()
    )]
    DiskFull {
        /// Folder of the cache.
        folder: PathBuf,
        /// The file.
        file: String,
        /// Bytes of the whole file.
        size: u64,
    },
    /// The cache cannot be used.
    #[error("cannot use {} in the cache of models", .path.display())]
    Disk {
        /// What was touched.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Only the cache may be used, and something is not there.
    #[error(
        "{file} of `{model}` is not in the cache at {}, and the hub is not asked; start once without HF_HUB_OFFLINE",
        .cache.display()
    )]
    NotCached {
        /// The repository and the revision.
        model: String,
        /// The file.
        file: String,
        /// Folder of the cache.
        cache: PathBuf,
    },
    /// Nowhere to put models.
    #[error("there is no folder to keep models in; set HF_HUB_CACHE or HOME")]
    NoCache,
    /// The files are there and are no model.
    #[error(transparent)]
    Model(#[from] ModelError),
}
