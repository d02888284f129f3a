//! Which optimised graph belongs to a model.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest as _, Sha256};

use super::super::graph::GraphFacts;
use super::super::rewrite;
use super::super::runtime::Runtime;

/// Smaller models load faster than a look into the cache pays off.
const SMALLEST: u64 = 8 << 20;
/// Larger graphs hold weights: hashing these would take as long as loading them, so their time and size must do.
const HASHED: usize = 16 << 20;
/// Goes up when sessions are made with other settings.
const SETTINGS: &str = "level all, prepacked, 1";

/// A model's files, and all that an optimised graph depends on besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The graph's file, all links followed.
    pub model: PathBuf,
    /// Name of the entry: a hash of the graph, of the identity of all files, of the rewriting, of ONNX Runtime's build,
    /// of the processor's features and of the settings.
    pub key: String,
    /// Bytes of the graph and its weights.
    pub size: u64,
}

impl Identity {
    /// The identity of the graph at `path`, of which `bytes` is what will be loaded.
    ///
    /// # Errors
    /// When one of its files cannot be looked at.
    pub fn of(path: &Path, bytes: &[u8], runtime: &Runtime) -> io::Result<Self> {
        let facts = GraphFacts::read(bytes).map_err(io::Error::other)?;
        Self::new(path, &facts, (bytes.len(), Cow::Borrowed(bytes)), runtime)
    }

    /// The same of a graph that is loaded as it is, and whose facts are known: a large file is not read once more.
    ///
    /// # Errors
    /// As [`Identity::of`].
    pub fn of_file(path: &Path, facts: &GraphFacts, runtime: &Runtime) -> io::Result<Self> {
        let length = usize::try_from(path.metadata()?.len()).unwrap_or(usize::MAX);
        let bytes = if length <= HASHED { std::fs::read(path)? } else { Vec::new() };
        Self::new(path, facts, (length, Cow::Owned(bytes)), runtime)
    }

    /// Of the bytes, those of a larger graph than [`HASHED`] do not count.
    fn new(
        path: &Path,
        facts: &GraphFacts,
        (length, bytes): (usize, Cow<'_, [u8]>),
        runtime: &Runtime,
    ) -> io::Result<Self> {
        let model = path.canonicalize()?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut hash = Sha256::new();
        let mut size = note_file(&mut hash, &model)?;
        for location in &facts.external_data {
            size += note_file(&mut hash, &folder.join(location).canonicalize()?)?;
        }
        if length <= HASHED {
            note(&mut hash, &bytes);
        }
        note_file(&mut hash, &runtime.library)?;
        note(&mut hash, runtime.build.as_bytes());
        note(&mut hash, processor().as_bytes());
        note(&mut hash, &rewrite::VERSION.to_le_bytes());
        note(&mut hash, &(length as u64).to_le_bytes());
        note(&mut hash, SETTINGS.as_bytes());
        let digest = hash.finalize();
        let key = digest[..16].iter().fold(String::new(), |mut key, byte| {
            let _ = write!(key, "{byte:02x}");
            key
        });
        Ok(Self { model, key, size })
    }

    /// Whether the model is so large that an optimised graph pays off.
    pub fn is_worth_keeping(&self) -> bool {
        self.size >= SMALLEST
    }
}

/// Adds a part with its length before it, so that no two lists of parts look the same.
fn note(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_le_bytes());
    hash.update(part);
}

/// Adds a file's path, size and time of change; gives its size.
fn note_file(hash: &mut Sha256, path: &Path) -> io::Result<u64> {
    let metadata = path.metadata()?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    note(hash, path.as_os_str().as_encoded_bytes());
    note(hash, &metadata.len().to_le_bytes());
    note(hash, &modified.as_nanos().to_le_bytes());
    Ok(metadata.len())
}

/// What decides which kernels run, and so how weights are laid out.
fn processor() -> String {
    let known = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // All cores have the same line: "flags" on x86, "Features" on ARM. Elsewhere the architecture must do.
    let features = known.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    format!("{} {} {}", std::env::consts::OS, std::env::consts::ARCH, features.unwrap_or_default())
}
