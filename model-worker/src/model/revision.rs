//! By what two models are known to answer alike.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::ModelError;
use super::files::{GraphSource, ModelFiles};
use super::manifest::Graph;

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// A hash of all of a model's files that its answers depend on, as 32 hexadecimal digits: of its settings, its tokenizer, its
/// template, the chosen graph and the weights beside it; and of this release, whose arithmetic may differ from another's.
///
/// Times and places do not count: copies of a model have one revision on all machines. Every byte of the weights is read, at
/// one or two gigabytes a second, which is less than ONNX Runtime takes.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn of(files: &ModelFiles, graph: &Graph) -> Result<String, ModelError> {
    let mut hash = Sha256::new();
    note(&mut hash, env!("CARGO_PKG_VERSION").as_bytes());
    for name in files.settings()? {
        let Some(bytes) = files.read(&name)? else { continue };
        note(&mut hash, name.as_bytes());
        note(&mut hash, &bytes);
    }
    match &graph.source {
        GraphSource::Memory(bytes) => note(&mut hash, bytes),
        GraphSource::File(path) => {
            let beside = graph.facts.external_data.iter().map(|name| path.with_file_name(name));
            for file in std::iter::once(path.clone()).chain(beside) {
                note_file(&mut hash, &file)
                    .map_err(|source| ModelError::Read { file: file.display().to_string(), source })?;
            }
        }
    }
    Ok(text(hash))
}

/// The same of a model that is made of nothing but its settings.
pub(crate) fn of_settings(settings: &str) -> String {
    let mut hash = Sha256::new();
    note(&mut hash, env!("CARGO_PKG_VERSION").as_bytes());
    note(&mut hash, settings.as_bytes());
    text(hash)
}

/// Adds a part with its length before it, so that no two lists of parts look the same.
fn note(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_le_bytes());
    hash.update(part);
}

fn note_file(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    hash.update(file.metadata()?.len().to_le_bytes());
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            read => hash.update(&piece[..read]),
        }
    }
}

fn text(hash: Sha256) -> String {
    hash.finalize()[..16].iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::onnx::graph::GraphFacts;

    /// The revision of a model in a folder of its own, with those files.
    fn revision(files: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, content).expect("a file");
        }
        let source = GraphSource::File(folder.path().join("onnx/model.onnx"));
        let facts = GraphFacts { external_data: ["model.onnx_data".to_owned()].into(), ..GraphFacts::default() };
        let graph = Graph { name: "model.onnx".to_owned(), source, facts };
        of(&ModelFiles::folder(folder.path()).expect("a folder"), &graph).expect("all can be read")
    }

    const MODEL: [(&str, &str); 5] = [
        ("onnx/model.onnx", "graph"),
        ("onnx/model.onnx_data", "weights"),
        ("config.json", "{}"),
        ("1_Pooling/config.json", "{}"),
        ("chat_template.jinja", "template"),
    ];

    #[test]
    fn copies_are_one_revision_and_a_change_of_any_file_is_another() {
        let usual = revision(&MODEL);
        assert_eq!((usual.len(), revision(&MODEL)), (32, usual.clone()), "in two folders");
        for index in 0..MODEL.len() {
            let mut changed = MODEL;
            changed[index].1 = "other";
            assert_ne!(revision(&changed), usual, "{}", changed[index].0);
        }
        let beside = [&MODEL[..], &[("README.md", "words"), ("onnx/model_int8.onnx", "another graph")]].concat();
        assert_eq!(revision(&beside), usual, "what is not used does not count");
    }

    #[test]
    fn settings_are_told_apart() {
        assert_ne!(of_settings("a"), of_settings("b"));
        assert_eq!(of_settings("a"), of_settings("a"));
    }
}
