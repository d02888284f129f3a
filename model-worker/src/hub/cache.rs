//! The cache of models on disk, laid out as Python's `huggingface_hub` does: each finds what the other has fetched.
//!
//! ```text
//! models--ORG--NAME/refs/REVISION               the commit a branch or tag stood at
//!                  /blobs/ETAG                  contents by checksum; ETAG.incomplete while on its way
//!                  /snapshots/COMMIT/FILE       links into blobs
//! .locks/models--ORG--NAME/ETAG.lock            held while a content is fetched
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::{HubError, HubModel};

/// One repository in the cache.
#[derive(Debug, Clone)]
pub(super) struct RepoCache {
    /// The whole cache.
    pub(super) root: PathBuf,
    folder: String,
}

/// Keeps other processes from fetching the same content; let go when dropped.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing the file is what lets go")] Option<File>);

impl RepoCache {
    pub(super) fn new(root: &Path, model: &HubModel) -> Self {
        Self { root: root.to_owned(), folder: format!("models--{}", model.id.replace('/', "--")) }
    }

    fn repository(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    /// Folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repository().join("snapshots").join(commit)
    }

    /// Where a content lies when it is whole.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.repository().join("blobs").join(etag)
    }

    /// The commit that a revision last stood at; a commit that is there stands for itself.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        let noted = fs::read_to_string(self.repository().join("refs").join(revision)).ok();
        let noted = noted.map(|text| text.trim().to_owned()).filter(|commit| is_plain(commit));
        noted.or_else(|| Some(revision.to_owned())).filter(|commit| self.snapshot(commit).is_dir())
    }

    /// Notes where a revision stands.
    pub(super) fn note_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.repository().join("refs").join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|noted| noted == commit) {
            return Ok(());
        }
        let fresh = passing(&path);
        make_parent(&path)?;
        let written = fs::write(&fresh, commit).and_then(|()| fs::rename(&fresh, &path));
        written.map_err(|source| HubError::Disk { path, source })
    }

    /// Files of a commit that are there, by their paths in the repository.
    pub(super) fn files(&self, commit: &str) -> Vec<String> {
        let snapshot = self.snapshot(commit);
        let mut found = Vec::new();
        let mut folders = vec![snapshot.clone()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.is_file() {
                    // Links whose content was deleted do not count.
                    found.extend(path.strip_prefix(&snapshot).ok().and_then(Path::to_str).map(str::to_owned));
                }
            }
        }
        found.sort();
        found
    }

    /// Makes a commit's file point to a content.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(name);
        let up = "../".repeat(name.split('/').count() + 1);
        make_parent(&pointer)?;
        let fresh = passing(&pointer);
        let linked = symlink(&format!("{up}blobs/{etag}"), &fresh).and_then(|()| fs::rename(&fresh, &pointer));
        linked.map_err(|source| HubError::Disk { path: pointer, source })
    }

    /// Makes a content that is itself a link a file of its own in this repository's `blobs`, at no cost of space.
    ///
    /// Newer versions of `huggingface_hub` keep contents in a store beside all repositories, `blobs/` of the cache.
    /// ONNX Runtime refuses a graph and its weights that lie in different folders once links are followed.
    pub(super) fn own(&self, commit: &str, name: &str) {
        let Ok(target) = fs::read_link(self.snapshot(commit).join(name)) else { return };
        let Some(etag) = target.file_name() else { return };
        let blob = self.repository().join("blobs").join(etag);
        let Ok(shared) = self.root.join("blobs").canonicalize() else { return };
        let Some(content) = blob.canonicalize().ok().filter(|content| content.starts_with(&shared)) else { return };
        let fresh = passing(&blob);
        if let Err(error) = fs::hard_link(&content, &fresh).and_then(|()| fs::rename(&fresh, &blob)) {
            tracing::warn!(file = name, %error, "the file stays in the shared store, where ONNX Runtime may refuse it");
        }
    }

    /// Waits until no other process fetches this content.
    pub(super) fn lock(&self, etag: &str) -> Result<Lock, HubError> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|source| HubError::Disk { path: path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(Some(file))),
            Err(TryLockError::WouldBlock) => {
                tracing::info!(lock = %path.display(), "waiting for another process that downloads the same file");
                file.lock().map_err(|source| HubError::Disk { path, source })?;
                Ok(Lock(Some(file)))
            }
            Err(TryLockError::Error(error)) => {
                // Some network file systems have no locks; the checksum still finds what two writers would spoil.
                tracing::warn!(lock = %path.display(), %error, "no lock; do not download the same model twice at once");
                Ok(Lock(None))
            }
        }
    }
}

#[cfg(unix)]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    fs::hard_link(link.parent().unwrap_or(link).join(target), link)
}

/// A name beside a file for what will be renamed to it. By chance, since process ids are the same in many containers.
fn passing(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{:016x}", rand::random::<u64>()))
}

/// Makes the folder in which a file shall lie.
pub(super) fn make_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|source| HubError::Disk { path: parent.to_owned(), source })
}

/// Whether a word from outside can be the name of a file.
pub(super) fn is_plain(word: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !word.is_empty() && !word.starts_with('.') && word.chars().all(known)
}
