//! Looks at a file that may change, again and again.
//!
//! It is looked at, not waited for: what the kernel tells of changes it does not tell of network file systems, and of a file
//! that is replaced (as editors and Kubernetes do) it tells through a folder that may be replaced as well. A look a second
//! costs next to nothing.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Most bytes of a file: tens of thousands of peers or keys.
const LARGEST: u64 = 16 << 20;
/// A file that was changed so shortly before it was read may change again without another time or length.
const FRESH: Duration = Duration::from_secs(2);

/// By which a file is known to be as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    length: u64,
    changed: Option<SystemTime>,
    /// Number of the file in its file system, where it has one.
    number: u64,
}

/// What a look shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nothing new.
    Same,
    /// Another text.
    Text(String),
    /// It cannot be read, for another reason than before.
    Unreadable(String),
}

/// A file that is looked at.
#[derive(Debug, Clone)]
pub struct Watch {
    path: PathBuf,
    /// Of the last reading; `None`: read again.
    stamp: Option<Stamp>,
    /// What was seen last.
    last: Result<String, String>,
}

impl Watch {
    /// Watches a file of which that text is known.
    pub fn new(path: PathBuf, text: String) -> Self {
        Self { path, stamp: None, last: Ok(text) }
    }

    /// Looks once. Reads files: not for a thread of the runtime.
    pub fn look(&mut self) -> Sight {
        let seen = match stamp(&self.path) {
            Ok(stamp) if self.stamp == Some(stamp) => return Sight::Same,
            Ok(_) => self.read(),
            Err(error) => Err(error),
        };
        let seen = seen.map_err(|error| {
            self.stamp = None;
            format!("cannot read {}: {error}", self.path.display())
        });
        if seen == self.last {
            return Sight::Same;
        }
        self.last.clone_from(&seen);
        match seen {
            Ok(text) => Sight::Text(text),
            Err(error) => Sight::Unreadable(error),
        }
    }

    fn read(&mut self) -> io::Result<String> {
        let before = stamp(&self.path)?;
        let text = read(&self.path)?;
        let is_fresh = before.changed.and_then(|changed| changed.elapsed().ok()).is_none_or(|age| age < FRESH);
        self.stamp = (!is_fresh && stamp(&self.path)? == before).then_some(before);
        Ok(text)
    }
}

/// The text of a file.
///
/// # Errors
/// When it cannot be read, is too large, or is no text.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it has more than {LARGEST} bytes")));
    }
    Ok(text)
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?; // of what links lead to
    Ok(Stamp { length: metadata.len(), changed: metadata.modified().ok(), number: number(&metadata) })
}

#[cfg(unix)]
fn number(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn number(_: &std::fs::Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn text(text: &str) -> Sight {
        Sight::Text(text.to_owned())
    }

    #[test]
    fn every_way_of_changing_a_file_is_seen_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("peers.yaml");
        fs::write(&path, "one").expect("a file");
        let mut watch = Watch::new(path.clone(), "one".to_owned());
        assert_eq!(watch.look(), Sight::Same);
        fs::write(&path, "two").expect("it is written in place");
        assert_eq!((watch.look(), watch.look()), (text("two"), Sight::Same), "as long as before");
        let other = folder.path().join("other");
        fs::write(&other, "six").expect("a file");
        fs::rename(&other, &path).expect("it is replaced");
        assert_eq!((watch.look(), watch.look()), (text("six"), Sight::Same));
        fs::remove_file(&path).expect("it is removed");
        let Sight::Unreadable(error) = watch.look() else { panic!("it is gone") };
        assert!(error.contains("peers.yaml") && error.contains("No such file"), "{error}");
        assert_eq!(watch.look(), Sight::Same, "it is said once");
        fs::write(&path, "six").expect("a file");
        assert_eq!((watch.look(), watch.look()), (text("six"), Sight::Same), "it is back");
        fs::write(&path, [0xff, 0xfe]).expect("a file");
        assert!(matches!(watch.look(), Sight::Unreadable(_)), "it is no text");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_is_turned_elsewhere_is_seen_as_in_kubernetes() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for version in ["v1", "v2"] {
            fs::create_dir(at(version)).expect("a folder");
            fs::write(at(version).join("peers.yaml"), version).expect("a file");
        }
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, at(name)).expect("a link");
        link("v1", "data");
        link("data/peers.yaml", "peers.yaml");
        let mut watch = Watch::new(at("peers.yaml"), "v1".to_owned());
        assert_eq!(watch.look(), Sight::Same);
        link("v2", "next");
        fs::rename(at("next"), at("data")).expect("it is turned");
        fs::remove_dir_all(at("v1")).expect("it is old");
        assert_eq!((watch.look(), watch.look()), (text("v2"), Sight::Same));
    }

    #[test]
    fn a_file_that_rests_is_read_no_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("peers.yaml");
        fs::write(&path, "one").expect("a file");
        let old = SystemTime::now() - Duration::from_secs(60);
        File::options().write(true).open(&path).expect("it is there").set_modified(old).expect("it may be set");
        let mut watch = Watch::new(path, "one".to_owned());
        assert_eq!((watch.look(), watch.stamp.is_some(), watch.look()), (Sight::Same, true, Sight::Same));
    }
}
