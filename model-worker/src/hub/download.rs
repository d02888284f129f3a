//! Fetches contents into the cache: goes on where a broken download ended, and trusts nothing unchecked.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use super::api::{Api, FileFacts};
use super::cache::{RepoCache, make_parent};
use super::{HubError, Observe};

/// Tries in a row that bring not one byte before a download is given up.
const TRIES: u32 = 4;
/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// Fetches files of one commit.
pub(super) struct Downloads<'a> {
    pub(super) api: &'a Api<'a>,
    pub(super) cache: &'a RepoCache,
    pub(super) commit: &'a str,
    pub(super) observe: &'a Observe<'a>,
    /// Bytes that are there, and that are wanted, of all files so far.
    done: u64,
    of: u64,
}

impl<'a> Downloads<'a> {
    pub(super) fn new(api: &'a Api<'a>, cache: &'a RepoCache, commit: &'a str, observe: &'a Observe<'a>) -> Self {
        Self { api, cache, commit, observe, done: 0, of: 0 }
    }

    /// Fetches those of the files that are not there.
    pub(super) fn get(&mut self, names: &[String]) -> Result<(), HubError> {
        let mut wanted = Vec::new();
        for name in names.iter().filter(|name| !self.cache.snapshot(self.commit).join(name).is_file()) {
            let facts = self.api.facts(self.commit, name)?;
            self.of += facts.size;
            wanted.push((name, facts));
        }
        for (name, facts) in wanted {
            self.file(name, &facts)?;
            self.cache.link(self.commit, name, &facts.etag)?;
        }
        Ok(())
    }

    fn file(&mut self, name: &str, facts: &FileFacts) -> Result<(), HubError> {
        let blob = self.cache.blob(&facts.etag);
        let _lock = self.cache.lock(&facts.etag)?;
        if !blob.is_file() {
            tracing::info!(file = name, bytes = facts.size, "downloading");
            let part = blob.with_file_name(format!("{}.incomplete", facts.etag));
            make_parent(&part)?;
            self.whole(name, facts, &part)?;
            check(name, facts, &part)?;
            fs::rename(&part, &blob).map_err(|source| HubError::Disk { path: blob, source })?;
        }
        self.done += facts.size;
        (self.observe)(self.done, self.of);
        Ok(())
    }

    /// Fetches until all bytes are there. A try that brought some is no failure.
    fn whole(&self, name: &str, facts: &FileFacts, part: &Path) -> Result<(), HubError> {
        let mut failures = 0;
        loop {
            let before = length(part);
            let error = match self.some(name, facts, part) {
                Ok(()) if length(part) == facts.size => return Ok(()),
                Ok(()) => "the connection ended early".to_owned(),
                Err(Trouble::Connection(reason)) => reason,
                Err(Trouble::Other(error)) => return Err(error),
            };
            let done = length(part);
            failures = if done > before { 0 } else { failures + 1 };
            tracing::warn!(file = name, bytes = done, of = facts.size, error, "the download broke off");
            if failures == TRIES {
                return Err(HubError::Broken { file: name.to_owned(), done, size: facts.size, reason: error });
            }
            if failures > 0 {
                // Gives the hub time; nothing else runs on this thread, so nothing is held up.
                std::thread::park_timeout(Duration::from_millis(250 << failures));
            }
        }
    }

    /// Fetches what one connection brings.
    fn some(&self, name: &str, facts: &FileFacts, part: &Path) -> Result<(), Trouble> {
        let mut from = length(part);
        if from == facts.size && part.is_file() {
            return Ok(());
        }
        if from > facts.size {
            from = 0;
        }
        let response = match self.api.content(self.commit, name, from) {
            Ok(response) => response,
            Err(HubError::Unreachable { reason, .. }) => return Err(Trouble::Connection(reason)),
            Err(error) => return Err(Trouble::Other(error)),
        };
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            fs::remove_file(part).map_err(|source| self.disk(name, facts, part, source))?;
            return Err(Trouble::Connection("the part that was there does not fit".to_owned()));
        }
        if response.status() != StatusCode::PARTIAL_CONTENT {
            from = 0; // the whole file comes, whatever was asked for
        }
        let mut file = open(part, from).map_err(|source| self.disk(name, facts, part, source))?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; PIECE];
        loop {
            let count = body.read(&mut buffer).map_err(|error| Trouble::Connection(error.to_string()))?;
            if count == 0 {
                return Ok(());
            }
            from += count as u64;
            if from > facts.size {
                return Err(Trouble::Other(too_long(name, facts, part)));
            }
            file.write_all(&buffer[..count]).map_err(|source| self.disk(name, facts, part, source))?;
            (self.observe)(self.done + from, self.of);
        }
    }

    fn disk(&self, name: &str, facts: &FileFacts, part: &Path, source: io::Error) -> Trouble {
        Trouble::Other(match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                HubError::DiskFull { folder: self.cache.root.clone(), file: name.to_owned(), size: facts.size }
            }
            _ => HubError::Disk { path: part.to_owned(), source },
        })
    }
}

/// Why a connection did not bring everything.
enum Trouble {
    /// It may be tried again.
    Connection(String),
    /// Nothing will change by trying again.
    Other(HubError),
}

/// Bytes of a file; 0 when it is not there.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Opens a file to write from a byte on; what is behind is cut off.
fn open(path: &Path, from: u64) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    file.set_len(from)?;
    Ok(file)
}

fn too_long(name: &str, facts: &FileFacts, part: &Path) -> HubError {
    remove(part);
    let found = format!("of more than {} bytes", facts.size);
    HubError::Checksum { file: name.to_owned(), expected: facts.etag.clone(), found }
}

/// Compares a content with its name; removes it when they differ.
fn check(name: &str, facts: &FileFacts, part: &Path) -> Result<(), HubError> {
    let disk = |source| HubError::Disk { path: part.to_owned(), source };
    let found = match facts.etag.len() {
        64 => digest::<Sha256>(part, b"").map_err(disk)?,
        40 => digest::<Sha1>(part, format!("blob {}\0", facts.size).as_bytes()).map_err(disk)?,
        // A mirror's own way of naming contents: only the length can be checked.
        _ => return Ok(()),
    };
    if found == facts.etag {
        return Ok(());
    }
    remove(part);
    Err(HubError::Checksum { file: name.to_owned(), expected: facts.etag.clone(), found })
}

fn remove(part: &Path) {
    if let Err(error) = fs::remove_file(part) {
        tracing::warn!(file = %part.display(), %error, "cannot remove what is broken");
    }
}

/// A digest of `prefix` and a file's bytes, in hexadecimal.
fn digest<D: Digest>(path: &Path, prefix: &[u8]) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = D::new();
    digest.update(prefix);
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => digest.update(&buffer[..count]),
        }
    }
}
