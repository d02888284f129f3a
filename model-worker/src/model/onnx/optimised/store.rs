//! The folder of optimised graphs.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Identity;

/// All entries together: some models of a few billion parameters, and a small part of any disc that holds such models.
const LARGEST: u64 = 20 << 30;
/// Time after which an entry of the same model under another key counts as left over.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);
/// What must be left on the disc beside an entry: a full disc harms everyone on the machine.
const SPARE: u64 = 1 << 30;
/// Entries hold the weights as they were and as the kernels want them: measured, 1.4 to 2.4 times the model.
const GROWTH: (u64, u64) = (5, 2);
const ENTRY: &str = "entry.json";
const BUILDING: &str = "building-";

/// Why there is no optimised graph.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The cache cannot be written.
    #[error("{} cannot be used ({source}); make it writable, or choose another cache folder with XDG_CACHE_HOME", .path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// The disc is too full.
    #[error("{free} bytes are free, and {needed} are needed; free some, or switch the cache of optimised graphs off")]
    Full {
        /// Bytes that are free.
        free: u64,
        /// Bytes that should be.
        needed: u64,
    },
    /// The model is larger than the whole cache may become.
    #[error("an entry would take some {needed} bytes, and the cache holds at most {largest}")]
    TooLarge {
        /// Bytes that an entry would take.
        needed: u64,
        /// Bytes that all entries may take together.
        largest: u64,
    },
    /// ONNX Runtime cannot make or load it.
    #[error("ONNX Runtime: {0}")]
    Runtime(String),
}

/// The cache of optimised graphs of one user.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    /// Bytes that all entries may take together.
    largest: u64,
}

/// What an entry holds; `entry.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// The graph that it was made of.
    model: PathBuf,
    /// Of the optimised graph, in hexadecimal digits.
    sha256: String,
    /// The other files by name.
    files: BTreeMap<String, FileFacts>,
}

/// Weights are too large to be hashed at each start; a file that was cut or written to shows here.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileFacts {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
}

/// What the folder says of an entry.
enum State {
    Missing,
    Intact,
    Damaged(String),
}

impl Store {
    /// The optimised graph's file in its entry.
    pub const GRAPH: &'static str = "model.onnx";
    /// The weights' file in its entry.
    pub const WEIGHTS: &'static str = "model.data";

    /// The store below a user's cache folder; nothing is made yet.
    pub fn new(cache: &Path) -> Self {
        Self { root: cache.join("muster/optimised"), largest: LARGEST }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Loads an entry with `load`, which gets the graph's file; makes it before with `save`, which gets a folder for
    /// [`Self::GRAPH`] and [`Self::WEIGHTS`], if it is not there or damaged.
    ///
    /// # Errors
    /// When it cannot be made, or not be loaded although it was made anew.
    pub fn load<T>(
        &self,
        identity: &Identity,
        save: impl Fn(&Path) -> Result<(), String>,
        load: impl Fn(&Path) -> Result<T, String>,
    ) -> Result<T, CacheError> {
        let folder = self.root.join(&identity.key);
        let graph = folder.join(Self::GRAPH);
        let damage = match self.state(&folder) {
            State::Intact => match load(&graph) {
                Ok(loaded) => {
                    note_use(&folder);
                    return Ok(loaded);
                }
                Err(error) => Some(error),
            },
            State::Missing => None,
            State::Damaged(reason) => Some(reason),
        };
        if let Some(reason) = damage {
            tracing::warn!(entry = %folder.display(), reason, "an optimised graph is damaged; making it anew");
        }
        self.make(identity, &folder, &save, |graph| load(graph).is_ok())?;
        load(&graph).map_err(CacheError::Runtime)
    }

    fn state(&self, folder: &Path) -> State {
        let entry = match fs::read(folder.join(ENTRY)) {
            Ok(bytes) => bytes,
            Err(_) if !folder.exists() => return State::Missing,
            Err(error) => return State::Damaged(format!("{ENTRY}: {error}")),
        };
        let intact = serde_json::from_slice::<Entry>(&entry).map_err(io::Error::from).and_then(|entry| {
            let now = Entry::of(folder, entry.model)?;
            Ok(now.sha256 == entry.sha256 && now.files == entry.files)
        });
        match intact {
            Ok(true) => State::Intact,
            Ok(false) => State::Damaged("its files are not as they were written".to_owned()),
            Err(error) => State::Damaged(error.to_string()),
        }
    }

    /// Makes an entry, unless another process does meanwhile.
    fn make(
        &self,
        identity: &Identity,
        folder: &Path,
        save: &impl Fn(&Path) -> Result<(), String>,
        loads: impl Fn(&Path) -> bool,
    ) -> Result<(), CacheError> {
        let unusable = |source| CacheError::Folder { path: self.root.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root).map_err(unusable)?;
        let _lock = self.lock().map_err(unusable)?;
        if matches!(self.state(folder), State::Intact) && loads(&folder.join(Self::GRAPH)) {
            return Ok(());
        }
        remove(folder).map_err(unusable)?;
        // Before the others go: they shall not make room for one that never comes.
        self.check_size(identity.size)?;
        self.tidy(identity);
        self.check_disc(identity.size)?;
        let building = tempfile::Builder::new().prefix(BUILDING).tempdir_in(&self.root).map_err(unusable)?;
        tracing::info!(model = %identity.model.display(), "optimising the model's graph; later starts will be faster");
        save(building.path()).map_err(CacheError::Runtime)?;
        Entry::of(building.path(), identity.model.clone())
            .and_then(|entry| entry.write(building.path()))
            .and_then(|()| fs::rename(building.path(), folder))
            .map_err(unusable)
    }

    /// Lets one process at a time make or remove entries; it lasts until the file is dropped.
    fn lock(&self) -> io::Result<File> {
        let file = File::options().create(true).truncate(false).write(true).open(self.root.join("lock"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!("waiting for another process that optimises a graph");
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(file)
    }

    /// Removes what nobody will use again, and as much of the rest as makes room for a new entry, least used first.
    fn tidy(&self, new: &Identity) {
        let mut room = self.largest.saturating_sub(expected(new.size));
        let mut entries = Vec::new();
        for folder in fs::read_dir(&self.root).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if !folder.is_dir() {
                continue;
            }
            let known = fs::read(folder.join(ENTRY)).ok();
            let entry = known.and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok());
            match entry {
                // Another build or processor may use the same model from the same folder; long unused, it has changed.
                Some(entry) if entry.model.exists() && (entry.model != new.model || !is_stale(&folder)) => {
                    entries.push((last_use(&folder), entry.bytes(), folder))
                }
                // The model is gone, or whoever was making it has died: the lock is ours.
                _ => discard(&folder),
            }
        }
        entries.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        for (_, bytes, folder) in entries {
            match room.checked_sub(bytes) {
                Some(left) => room = left,
                None => discard(&folder),
            }
        }
    }

    fn check_size(&self, size: u64) -> Result<(), CacheError> {
        let expected = expected(size);
        if expected > self.largest {
            return Err(CacheError::TooLarge { needed: expected, largest: self.largest });
        }
        Ok(())
    }

    fn check_disc(&self, size: u64) -> Result<(), CacheError> {
        // Where the system does not tell, a failed write will.
        let Ok(disc) = rustix::fs::statvfs(&self.root) else { return Ok(()) };
        let (free, needed) = (disc.f_bavail.saturating_mul(disc.f_frsize), expected(size).saturating_add(SPARE));
        if free < needed { Err(CacheError::Full { free, needed }) } else { Ok(()) }
    }
}

impl Entry {
    /// What lies in a folder.
    fn of(folder: &Path, model: PathBuf) -> io::Result<Self> {
        let sha256 = Sha256::digest(fs::read(folder.join(Store::GRAPH))?);
        let sha256 = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut files = BTreeMap::new();
        for file in fs::read_dir(folder)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            if name != ENTRY {
                let metadata = file.metadata()?;
                let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
                let modified = u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX);
                files.insert(name, FileFacts { bytes: metadata.len(), modified });
            }
        }
        Ok(Self { model, sha256, files })
    }

    /// Writes itself into the folder, after all else is on the disc: a machine that stops must not leave an entry whose
    /// weights are zeros.
    fn write(&self, folder: &Path) -> io::Result<()> {
        for name in self.files.keys() {
            File::open(folder.join(name))?.sync_all()?;
        }
        fs::write(folder.join(ENTRY), serde_json::to_vec_pretty(self)?)?;
        File::open(folder.join(ENTRY))?.sync_all()
    }

    fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

/// Bytes that an entry of a model will take.
fn expected(size: u64) -> u64 {
    size.saturating_mul(GROWTH.0) / GROWTH.1
}

fn note_use(folder: &Path) {
    // Only the order of removal depends on it; a cache that cannot be written still serves.
    let _ = File::options().append(true).open(folder.join(ENTRY)).and_then(|file| file.set_modified(SystemTime::now()));
}

fn last_use(folder: &Path) -> SystemTime {
    folder.join(ENTRY).metadata().and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH)
}

/// Whether nobody has used an entry for so long that its model, or ONNX Runtime, must have changed since.
fn is_stale(folder: &Path) -> bool {
    last_use(folder).elapsed().is_ok_and(|unused| unused > STALE)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn discard(folder: &Path) {
    if let Err(error) = remove(folder) {
        tracing::warn!(entry = %folder.display(), %error, "cannot remove an old optimised graph");
    }
}

#[cfg(test)]
mod tests;
