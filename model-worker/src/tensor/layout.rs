//! Where a model's versions are on the disc: Triton's layout, a folder with one graph, or a file.
//!
//! ```text
//!   NAME/config.pbtxt            may be missing
//!       /labels.txt              whatever the configuration names
//!       /1/model.onnx            a version: a folder whose name is a number without leading zeros
//!       /2/model.onnx
//! ```

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use muster_shared::tensor::config::VersionPolicy;

use super::settings::{GRAPH_FILE, Settings};

/// The file with a model's settings.
const CONFIG_FILE: &str = "config.pbtxt";

/// A model on the disc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its folder: nothing outside is ever read.
    pub folder: PathBuf,
    /// What its configuration says.
    pub settings: Settings,
    /// The graphs of those versions that its policy serves.
    pub versions: BTreeMap<u64, PathBuf>,
}

/// What can be seen of a version's files without reading them: when it changes, they have changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp(Vec<(PathBuf, u64, Option<SystemTime>)>);

/// Names of the models in a repository: its folders, but for hidden ones.
///
/// # Errors
/// When the folder cannot be read, in words.
pub fn models(repository: &Path) -> Result<Vec<String>, String> {
    if repository.join(CONFIG_FILE).is_file() {
        return Err(format!(
            "{} holds {CONFIG_FILE}, so it is a model's own folder; a repository is the folder above it, and --model takes \
             one model's",
            repository.display()
        ));
    }
    let mut names: Vec<String> = entries(repository)?
        .into_iter()
        .filter(|path| path.is_dir())
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

/// The folder of a model in a repository.
///
/// # Errors
/// In words, when the name is none of a folder, or there is no such folder.
pub fn folder(repository: &Path, name: &str) -> Result<PathBuf, String> {
    let mut parts = Path::new(name).components();
    let is_plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    if !is_plain || name.starts_with('.') {
        return Err(format!("`{name}` is no name of a model; it names a folder of the repository"));
    }
    let folder = repository.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    let there = models(repository).unwrap_or_default();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    Err(format!("the repository has no model `{name}`; it has {there}"))
}

/// Reads what is in a model's folder, all but the graphs.
///
/// # Errors
/// In words, when its configuration is wrong, or there is no version that its policy serves.
pub fn read(name: &str, folder: &Path) -> Result<Found, String> {
    let path = folder.join(CONFIG_FILE);
    let settings = match std::fs::read_to_string(&path) {
        Ok(text) => Settings::read(name, &text).map_err(|reason| format!("{CONFIG_FILE}: {reason}"))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Settings::usual(name),
        Err(error) => return Err(format!("{CONFIG_FILE} cannot be read: {error}")),
    };
    let file = &settings.config.default_model_filename;
    if !Path::new(file).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(format!(
            "{CONFIG_FILE}: default_model_filename is `{file}`; it must be a file's name within a version's folder"
        ));
    }
    let mut there = numbered(folder, file)?;
    if there.is_empty() && folder.join(file).is_file() {
        there.insert(1, folder.join(file));
    }
    if there.is_empty() {
        return Err(format!("there is no version: expected a folder 1 (or any number) with {file}"));
    }
    let versions = serve(&settings.config.version_policy, there)?;
    Ok(Found { name: name.to_owned(), folder: folder.to_owned(), settings, versions })
}

/// A graph in a file of its own: version 1 of a model without a configuration.
pub fn single(name: &str, graph: &Path) -> Found {
    let folder = graph.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Found {
        name: name.to_owned(),
        folder: folder.to_owned(),
        settings: Settings::usual(name),
        versions: BTreeMap::from([(1, graph.to_owned())]),
    }
}

/// A model outside of a repository that is a graph's file, or a folder in Triton's layout; `None` for anything else. It
/// has the name that it is given, whatever its own may be.
pub fn given(name: &str, path: &Path) -> Option<Result<Found, String>> {
    if path.is_file() && path.extension().is_some_and(|extension| extension == "onnx") {
        return Some(Ok(single(name, path)));
    }
    if !path.is_dir() || !is_model(path) {
        return None;
    }
    let own = path.canonicalize().ok()?.file_name()?.to_str()?.to_owned();
    Some(read(&own, path).map(|mut found| {
        name.clone_into(&mut found.name);
        name.clone_into(&mut found.settings.config.name);
        found
    }))
}

/// Whether a folder is a model in Triton's layout: it has a version, or says how it shall be served.
pub fn is_model(folder: &Path) -> bool {
    folder.join(CONFIG_FILE).is_file() || numbered(folder, GRAPH_FILE).is_ok_and(|versions| !versions.is_empty())
}

/// Graphs by version.
fn numbered(folder: &Path, file: &str) -> Result<BTreeMap<u64, PathBuf>, String> {
    let version = |path: PathBuf| {
        let number: u64 = path.file_name()?.to_str().filter(|name| !name.starts_with(['0', '+']))?.parse().ok()?;
        let graph = path.join(file);
        graph.is_file().then_some((number, graph))
    };
    Ok(entries(folder)?.into_iter().filter_map(version).collect())
}

/// Of the versions that are there, those that the policy serves.
fn serve(policy: &VersionPolicy, mut there: BTreeMap<u64, PathBuf>) -> Result<BTreeMap<u64, PathBuf>, String> {
    match policy {
        VersionPolicy::All {} => {}
        VersionPolicy::Latest { num_versions } => {
            while there.len() > *num_versions as usize {
                there.pop_first();
            }
        }
        VersionPolicy::Specific { versions } => {
            let names = |versions: Vec<String>| versions.join(", ");
            let is_there = |version: &&i64| u64::try_from(**version).is_ok_and(|version| there.contains_key(&version));
            if let Some(missing) = versions.iter().find(|version| !is_there(version)) {
                let there = names(there.keys().map(u64::to_string).collect());
                return Err(format!("version_policy names version {missing}; there is {there}"));
            }
            there.retain(|version, _| i64::try_from(*version).is_ok_and(|version| versions.contains(&version)));
        }
    }
    Ok(there)
}

impl Found {
    /// What can be seen of a version's files: its graph and what lies beside it, and the model's own files.
    pub fn stamp(&self, version: u64) -> Stamp {
        let beside = self.versions.get(&version).and_then(|graph| graph.parent());
        let folders = beside.into_iter().filter(|beside| *beside != self.folder).chain([self.folder.as_path()]);
        let files = folders.flat_map(|folder| entries(folder).unwrap_or_default());
        let seen = |path: PathBuf| {
            let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some((path, metadata.len(), metadata.modified().ok()))
        };
        Stamp(files.filter_map(seen).collect())
    }
}

/// What is in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let read = |error: std::io::Error| format!("{} cannot be read: {error}", folder.display());
    let entries = std::fs::read_dir(folder).map_err(read)?;
    let mut paths = entries.map(|entry| Ok(entry.map_err(read)?.path())).collect::<Result<Vec<_>, String>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, file: &str, text: &str) {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }

    fn versions(found: &Found) -> Vec<u64> {
        found.versions.keys().copied().collect()
    }

    #[test]
    fn versions_are_numbered_folders_and_the_policy_chooses_among_them() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("m");
        for file in ["1/model.onnx", "9/model.onnx", "10/model.onnx", "011/model.onnx", "x/model.onnx", "12/other.onnx"]
        {
            write(&folder, file, "");
        }
        assert_eq!(versions(&read("m", &folder).expect("it is there")), [10]);
        for (policy, expected) in
            [("all {}", &[1, 9, 10][..]), ("latest { num_versions: 2 }", &[9, 10]), ("specific { versions: 9 }", &[9])]
        {
            write(&folder, CONFIG_FILE, &format!("version_policy {{ {policy} }}"));
            assert_eq!(versions(&read("m", &folder).expect("it is there")), expected);
        }
        write(&folder, CONFIG_FILE, "version_policy { specific { versions: [1, 4] } }");
        let error = read("m", &folder).expect_err("4 is not there");
        assert!(error.contains("version 4") && error.contains("1, 9, 10"), "{error}");
        write(&folder, CONFIG_FILE, "default_model_filename: \"../secret.onnx\"");
        assert!(read("m", &folder).expect_err("it leads out").contains("within a version's folder"));
    }

    #[test]
    fn a_folder_with_one_graph_is_version_1() {
        let root = tempfile::tempdir().expect("a folder");
        write(root.path(), "m/model.onnx", "");
        let found = read("m", &root.path().join("m")).expect("it is there");
        assert_eq!((versions(&found), is_model(&found.folder)), (vec![1], false));
        let error = read("root", root.path()).expect_err("there is no graph");
        assert!(error.contains("model.onnx"), "{error}");
    }

    #[test]
    fn names_that_are_no_folders_of_the_repository_are_refused() {
        let root = tempfile::tempdir().expect("a folder");
        write(root.path(), "repository/m/1/model.onnx", "");
        write(root.path(), "secret/1/model.onnx", "");
        let repository = root.path().join("repository");
        assert_eq!(models(&repository).expect("it is there"), ["m"]);
        assert!(folder(&repository, "m").is_ok());
        for name in ["", ".", "..", "../secret", "m/1", "/etc", "m/", "./m"] {
            let error = folder(&repository, name).expect_err(name);
            assert!(error.contains("no name of a model"), "{error}");
        }
        assert!(folder(&repository, "n").expect_err("not there").contains("it has m"));
    }

    #[test]
    fn a_stamp_changes_with_the_files() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("m");
        write(&folder, "1/model.onnx", "one");
        let found = read("m", &folder).expect("it is there");
        let before = found.stamp(1);
        assert_eq!(found.stamp(1), before);
        write(&folder, "1/model.onnx", "other");
        assert_ne!(found.stamp(1), before);
    }
}
