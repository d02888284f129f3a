//! Finds and starts ONNX Runtime's shared library, once for the process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use ort::environment::Environment;

use super::spin;

/// The version that muster is tested with, and that the fetch script gets.
pub const VERSION: &str = "1.31.1";
/// The one command that gets the library.
pub const FETCH_COMMAND: &str = "scripts/fetch-onnxruntime.sh";

#[cfg(target_os = "macos")]
const FILE: &str = "libonnxruntime.dylib";
#[cfg(not(target_os = "macos"))]
const FILE: &str = "libonnxruntime.so";

/// Where to look, beside the fixed places.
#[derive(Debug, Clone, Default)]
pub struct LibrarySearch {
    /// `ORT_DYLIB_PATH`: if given, nothing else is tried.
    pub explicit: Option<PathBuf>,
    /// The folder of the running executable.
    pub beside: Option<PathBuf>,
    /// The user's cache folder, `~/.cache` say.
    pub cache: Option<PathBuf>,
}

/// Why ONNX Runtime is not to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// No library anywhere.
    #[error("ONNX Runtime is not installed (looked for {}); get it with `{FETCH_COMMAND}`", list(.tried))]
    NotFound {
        /// Every place that was looked at.
        tried: Vec<PathBuf>,
    },
    /// `ORT_DYLIB_PATH` names nothing.
    #[error(
        "there is no ONNX Runtime at {}, which ORT_DYLIB_PATH or --onnxruntime names; leave it out, or get the library with `{FETCH_COMMAND}`",
        .0.display()
    )]
    ExplicitMissing(PathBuf),
    /// The file is no ONNX Runtime that this build can use.
    #[error("cannot use {} as ONNX Runtime: {reason}; get version {VERSION} with `{FETCH_COMMAND}`", .path.display())]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The started runtime.
#[derive(Debug)]
pub struct Runtime {
    /// Keeps the one environment of the process alive.
    pub(super) environment: Environment,
    /// The library that was taken.
    pub library: PathBuf,
    /// Version and build flags in the library's own words.
    pub build: &'static str,
    /// See [`Self::bounds_spinning`].
    bounds_spinning: OnceLock<bool>,
}

impl Runtime {
    /// Whether it can bound how long threads spin. Versions that cannot ignore the setting, and spin on.
    pub(super) fn bounds_spinning(&self) -> bool {
        // The version could be asked for through a raw pointer only, and would not tell what a fork has taken over.
        *self.bounds_spinning.get_or_init(|| {
            std::fs::read(&self.library).is_ok_and(|library| names(&library, spin::DURATION.as_bytes()))
        })
    }
}

/// Whether a library holds a text, ended by a zero as compilers write it.
fn names(library: &[u8], text: &[u8]) -> bool {
    library.split(|&byte| byte == 0).any(|piece| piece.ends_with(text))
}

/// Starts ONNX Runtime, or gives the one that was started before.
///
/// # Errors
/// See [`RuntimeError`]. After an error another attempt may succeed.
pub fn start(search: &LibrarySearch) -> Result<&'static Runtime, RuntimeError> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());

    // Two environments in one process are an error, so only one thread may try at a time.
    let _starting = STARTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let library = locate(search)?;
    let runtime = load(library)?;
    tracing::info!(library = %runtime.library.display(), "started ONNX Runtime");
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// The library that [`start`] would take.
///
/// # Errors
/// When there is none.
pub fn locate(search: &LibrarySearch) -> Result<PathBuf, RuntimeError> {
    if let Some(path) = &search.explicit {
        return if path.is_file() { Ok(path.clone()) } else { Err(RuntimeError::ExplicitMissing(path.clone())) };
    }
    let tried = places(search);
    tried.iter().find(|path| path.is_file()).cloned().ok_or(RuntimeError::NotFound { tried })
}

/// Beside the executable, in the user's cache, and where systems keep libraries.
fn places(search: &LibrarySearch) -> Vec<PathBuf> {
    let beside = search.beside.iter().map(|folder| folder.join(FILE));
    let cached = search.cache.iter().map(|cache| cache.join("muster/onnxruntime").join(VERSION).join(FILE));
    let system = ["/usr/local/lib", "/usr/lib", "/usr/lib64", MULTIARCH, "/opt/onnxruntime/lib", "/opt/homebrew/lib"];
    beside.chain(cached).chain(system.map(|folder| Path::new(folder).join(FILE))).collect()
}

#[cfg(target_arch = "aarch64")]
const MULTIARCH: &str = "/usr/lib/aarch64-linux-gnu";
#[cfg(not(target_arch = "aarch64"))]
const MULTIARCH: &str = "/usr/lib/x86_64-linux-gnu";

fn load(library: PathBuf) -> Result<Runtime, RuntimeError> {
    let unusable = |reason: String| RuntimeError::Unusable { path: library.clone(), reason };
    let builder = ort::init_from(&library).map_err(|error| unusable(error.to_string()))?;
    // Official libraries from 1.29 on report to their maker unless told not to before the environment exists.
    let environment =
        builder.with_name("muster").with_telemetry(false).build().map_err(|error| unusable(error.to_string()))?;
    Ok(Runtime { environment, build: ort::info(), library, bounds_spinning: OnceLock::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_path_that_is_missing_is_an_error_even_if_another_library_is_there() {
        let search = LibrarySearch { explicit: Some("/nonexistent/lib.so".into()), ..LibrarySearch::default() };
        let error = locate(&search).expect_err("no such file");
        assert!(error.to_string().contains("ORT_DYLIB_PATH"), "{error}");
        assert!(error.to_string().contains(FETCH_COMMAND), "{error}");
    }

    #[test]
    fn the_library_beside_the_executable_comes_before_the_cache() {
        let (beside, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let cached = cache.path().join("muster/onnxruntime").join(VERSION);
        std::fs::create_dir_all(&cached).expect("a folder");
        std::fs::write(cached.join(FILE), "").expect("a file");
        let search = LibrarySearch {
            explicit: None,
            beside: Some(beside.path().to_owned()),
            cache: Some(cache.path().to_owned()),
        };
        assert_eq!(locate(&search).expect("the cached one"), cached.join(FILE));
        std::fs::write(beside.path().join(FILE), "").expect("a file");
        assert_eq!(locate(&search).expect("the one beside"), beside.path().join(FILE));
    }

    #[test]
    fn a_setting_is_found_in_a_library_that_names_it() {
        assert!(names(b"\x7fELF\0session.a\0more", b"session.a"));
        assert!(!names(b"\x7fELF\0session.ab\0more", b"session.a"));
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_with_a_way_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        std::fs::write(&path, "not a library").expect("a file");
        let error = load(path.clone()).expect_err("no library");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert!(error.to_string().contains(FETCH_COMMAND), "{error}");
    }
}
