//! Where a model's files come from: a folder, or the binary itself.

use std::borrow::Cow;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::ModelError;

/// How the names of files end that say how a model is used.
const SETTINGS: [&str; 4] = [".json", ".jinja", ".txt", ".model"];
/// How those of layers end that stand behind a graph.
const LAYERS: &str = ".safetensors";

/// A model's files.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// In a folder.
    Folder(PathBuf),
    /// Inside the binary.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

/// A graph, as ONNX Runtime will load it.
#[derive(Debug, Clone)]
pub enum GraphSource {
    /// A file; weights may lie beside it.
    File(PathBuf),
    /// Bytes that hold their weights.
    Memory(&'static [u8]),
}

impl ModelFiles {
    /// The files of a folder.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn folder(path: &Path) -> Result<Self, ModelError> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self::Folder(path.to_owned())),
            Ok(_) => Err(ModelError::NotAFolder(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ModelError::FolderMissing(path.to_owned())),
            Err(source) => Err(ModelError::Read { file: path.display().to_string(), source }),
        }
    }

    /// A file's name as users know it.
    pub fn describe(&self, name: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(name).display().to_string(),
            Self::Embedded(_) => format!("(built in)/{name}"),
        }
    }

    /// The content of a file, or `None` when it is not there.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, ModelError> {
        self.check_name(name)?;
        match self {
            Self::Folder(folder) => match std::fs::read(folder.join(name)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(ModelError::Read { file: self.describe(name), source }),
            },
            Self::Embedded(files) => {
                Ok(files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
        }
    }

    /// Refuses names that lead out of the folder: some come from the model's own configuration.
    fn check_name(&self, name: &str) -> Result<(), ModelError> {
        if Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Ok(());
        }
        let reason = "its name leads out of the model's folder; files must lie inside it".to_owned();
        Err(ModelError::Malformed { file: self.describe(name), reason })
    }

    /// The content of a text file, or `None` when it is not there.
    ///
    /// # Errors
    /// When it is there and is not UTF-8, or cannot be read.
    pub fn read_text(&self, name: &str) -> Result<Option<String>, ModelError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        String::from_utf8(bytes.into_owned())
            .map(Some)
            .map_err(|error| ModelError::Malformed { file: self.describe(name), reason: error.to_string() })
    }

    /// The content of a JSON file, or `None` when it is not there.
    ///
    /// # Errors
    /// When it is there and is not JSON, or cannot be read.
    pub fn read_json(&self, name: &str) -> Result<Option<serde_json::Value>, ModelError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| ModelError::Malformed { file: self.describe(name), reason: error.to_string() })
    }

    /// Whether a file is there.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Embedded(files) => files.iter().any(|(file, _)| *file == name),
        }
    }

    /// Names of the graphs in the folder and in its `onnx/`, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn graphs(&self) -> Result<Vec<String>, ModelError> {
        let mut names = match self {
            Self::Folder(folder) => [names(folder, "")?, names(folder, "onnx/")?].concat(),
            Self::Embedded(files) => files.iter().map(|(name, _)| (*name).to_owned()).collect(),
        };
        names.retain(|name| name.ends_with(".onnx") && self.has(name));
        names.sort();
        Ok(names)
    }

    /// Names of the files that say how the model is used, sorted: settings, tokenizers and templates in the folder and in
    /// those inside it, and in the latter the layers that stand behind the graph, as `2_Dense/model.safetensors`.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn settings(&self) -> Result<Vec<String>, ModelError> {
        let mut names: Vec<String> = match self {
            Self::Embedded(files) => files.iter().map(|(name, _)| (*name).to_owned()).collect(),
            Self::Folder(folder) => {
                let here = names(folder, "")?;
                let inner = here.iter().filter(|name| folder.join(name).is_dir());
                let inner = inner.map(|name| names(folder, &format!("{name}/")));
                let inner: Vec<String> = inner.collect::<Result<Vec<_>, _>>()?.concat();
                here.into_iter().filter(|name| !name.ends_with(LAYERS)).chain(inner).collect()
            }
        };
        let counts = |name: &str| SETTINGS.iter().chain([&LAYERS]).any(|end| name.ends_with(end));
        names.retain(|name| counts(name) && self.has(name));
        names.sort();
        Ok(names)
    }

    /// A graph by its name; it must be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn graph(&self, name: &str) -> Result<GraphSource, ModelError> {
        self.check_name(name)?;
        let missing = || ModelError::FileMissing {
            file: self.describe(name),
            expected: "the model's configuration names it as the graph".to_owned(),
        };
        match self {
            Self::Folder(folder) if self.has(name) => Ok(GraphSource::File(folder.join(name))),
            Self::Folder(_) => Err(missing()),
            Self::Embedded(files) => files
                .iter()
                .find(|(file, _)| *file == name)
                .map(|(_, bytes)| GraphSource::Memory(bytes))
                .ok_or_else(missing),
        }
    }
}

/// Names of what lies in a part of a folder, each with the part before it; none when there is no such part.
fn names(folder: &Path, part: &str) -> Result<Vec<String>, ModelError> {
    let path = folder.join(part);
    let refused = |source| ModelError::Read { file: path.display().to_string(), source };
    let entries = match std::fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(refused)?,
    };
    entries.map(|entry| Ok(format!("{part}{}", entry.map_err(refused)?.file_name().to_string_lossy()))).collect()
}

/// Where a snapshot of a hub's cache keeps its files: `models--ORG--NAME/blobs`, for a folder in
/// `models--ORG--NAME/snapshots/COMMIT`. `None` for every other folder.
///
/// `folder` has no links in it.
pub(crate) fn hub_blobs(folder: &Path) -> Option<PathBuf> {
    let named = |path: &Path, test: fn(&str) -> bool| path.file_name().and_then(|name| name.to_str()).is_some_and(test);
    let snapshots = folder.ancestors().skip(1).find(|path| named(path, |name| name == "snapshots"))?;
    let repository = snapshots.parent().filter(|path| named(path, |name| name.starts_with("models--")))?;
    let blobs = repository.join("blobs");
    // A link in its place could lead anywhere.
    blobs.canonicalize().is_ok_and(|real| real == blobs).then_some(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("model");
        std::fs::create_dir(&inner).expect("a folder");
        std::fs::write(folder.path().join("secret"), "").expect("a file");
        std::fs::write(inner.join("model.onnx"), "").expect("a file");
        let files = ModelFiles::folder(&inner).expect("it is there");
        assert!(files.graph("model.onnx").is_ok());
        for name in ["../secret", "/etc/passwd", "a/../../secret"] {
            let error = files.graph(name).expect_err(name).to_string();
            assert!(error.contains("leads out of the model's folder"), "{error}");
            assert!(files.read(name).is_err(), "{name}");
        }
    }

    #[test]
    fn blobs_belong_to_the_snapshots_beside_them_and_to_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().canonicalize().expect("it is there");
        let make = |path: &str| {
            std::fs::create_dir_all(root.join(path)).expect("a folder");
            root.join(path)
        };
        let [snapshot, inner] = ["models--a--b/snapshots/c", "models--a--b/snapshots/c/cpu"].map(make);
        assert_eq!(hub_blobs(&snapshot), None, "there are no blobs");
        let blobs = make("models--a--b/blobs");
        assert_eq!(hub_blobs(&snapshot), Some(blobs.clone()));
        assert_eq!(hub_blobs(&inner), Some(blobs));
        make("other/blobs");
        for path in ["other/snapshots/c", "models--a--b/c", "models--a--b/snapshots"] {
            assert_eq!(hub_blobs(&make(path)), None, "{path}");
        }
        let linked = make("models--x--y/snapshots/c");
        std::os::unix::fs::symlink("/etc", root.join("models--x--y/blobs")).expect("a link");
        assert_eq!(hub_blobs(&linked), None, "the blobs lead elsewhere");
    }
}
