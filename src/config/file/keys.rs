//! The keys of a gateway's clients: as flags give them, one a line in a file, or in YAML with names and priorities.
//!
//! ```yaml
//! keys:
//!   - name: alice
//!     key: ${ALICE_KEY}
//!     priority: 5
//!   - key: another
//! ```
//!
//! A key without a name is called by its place, first those of the file, then those of flags: `another` is `key-2`.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use anyhow::Context as _;
use muster_gateway::ApiKey;
use muster_shared::secret::Secret;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use super::variables::{self, Filled, Place};

/// How a file begins that is YAML, or JSON, which is YAML too. Nobody's key looks like that.
const YAML: [&str; 3] = ["keys:", "{", "---"];

/// Why a key has a name that nobody gave it.
const UNNAMED: &str = "a key without a name is called by its place";

/// A file with names and priorities.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    keys: Vec<Spanned<Entry>>,
}

/// One of its keys; without name and priority the key alone will do.
#[derive(Debug)]
struct Entry {
    name: Option<String>,
    key: Secret,
    priority: i64,
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

/// Reads an entry in either form. No error repeats what may be a key.
struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key in quotes, or `name`, `key` and `priority`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Entry, E> {
        Ok(Entry { name: None, key: Secret::parse(text).map_err(E::custom)?, priority: 0 })
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Entry, E> {
        Err(unquoted())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Entry, E> {
        Err(unquoted())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Entry, E> {
        Err(unquoted())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Entry, E> {
        Err(unquoted())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            name: Option<String>,
            key: Secret,
            #[serde(default)]
            priority: i64,
        }
        let Fields { name, key, priority } = Fields::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Entry { name, key, priority })
    }
}

fn unquoted<E: Error>() -> E {
    E::custom("a key must be a text; put quotes around it")
}

/// Every key that lets a client in, each once.
///
/// # Errors
/// With the file and the line of what is wrong.
pub(crate) fn client_keys(given: &[Secret], file: Option<&Path>) -> anyhow::Result<Vec<ApiKey>> {
    let mut keys = match file {
        Some(path) => {
            let name = path.display();
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read keys from {name}"))?;
            let lookup = |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
            let keys = read(&text, lookup).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
            anyhow::ensure!(!keys.is_empty(), "{name} holds no key");
            keys
        }
        None => Vec::new(),
    };
    let flags = given.iter().cloned().zip(keys.len() + 1..);
    keys.extend(flags.map(|(secret, place)| ApiKey::unnamed(secret, place)));
    let (mut secrets, mut names) = (HashSet::new(), HashSet::new());
    keys.retain(|key| secrets.insert(key.secret.expose().to_owned())); // said twice, it is still one
    let taken = keys.iter().find(|key| !names.insert(key.name.as_str()));
    match (taken, file) {
        // A file's own names are told apart already.
        (Some(ApiKey { name, .. }), Some(file)) => {
            let file = file.display();
            anyhow::bail!("the name `{name}` in {file} is that of a key outside it too: {UNNAMED}; choose another")
        }
        _ => Ok(keys),
    }
}

/// Reads a line of the plain form, on which there is nothing but a key: what looks like something else is a mistake in
/// YAML, and must not let anyone in.
fn plain(line: &str) -> Result<Secret, String> {
    if line.contains(char::is_whitespace) || line.ends_with(':') || line.starts_with(['-', '{', '[', '"', '\'']) {
        return Err("this is no key, which is a word of its own; a file in YAML begins with `keys:`".to_owned());
    }
    Secret::parse(line).map_err(|error| error.to_string())
}

/// Reads a file's text in either form.
fn read(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<ApiKey>, String> {
    let text = text.trim_start_matches('\u{feff}');
    let lines =
        || text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    match lines().next() {
        Some((_, first)) if YAML.iter().any(|begin| first.starts_with(begin)) => read_yaml(text, lookup),
        _ => lines()
            .zip(1..)
            .map(|((number, line), place)| match plain(line) {
                Ok(key) => Ok(ApiKey::unnamed(key, place)),
                Err(error) => Err(format!("line {}: {error}", number + 1)),
            })
            .collect(),
    }
}

fn read_yaml(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<ApiKey>, String> {
    let filled = variables::fill(text, lookup)?;
    let file: KeyFile = super::read(&filled)?;
    let (mut names, mut secrets) = (HashMap::new(), HashMap::new());
    let mut keys = Vec::new();
    for Spanned { value: entry, referenced, .. } in file.keys {
        let place = Place { line: referenced.line() as usize, column: referenced.column() as usize };
        let line = filled.in_file(place).line;
        let key = entry.into_key(keys.len() + 1).map_err(|error| format!("line {line}: {}", filled.hide(&error)))?;
        if let Some(first) = secrets.insert(key.secret.expose().to_owned(), line) {
            return Err(format!("line {line}: the key of `{}` stands in line {first} already", shown(&filled, &key)));
        }
        if let Some(first) = names.insert(key.name.clone(), line) {
            let name = shown(&filled, &key);
            return Err(format!(
                "line {line}: the name `{name}` is taken by line {first}; give each key its own ({UNNAMED})"
            ));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn shown(filled: &Filled, key: &ApiKey) -> String {
    filled.hide(&key.name)
}

impl Entry {
    fn into_key(self, place: usize) -> Result<ApiKey, String> {
        let priority = i8::try_from(self.priority).map_err(|_| {
            let (least, most) = (i8::MIN, i8::MAX);
            format!("priority is {}; expected a whole number from {least} to {most}", self.priority)
        })?;
        match self.name {
            Some(name) => ApiKey::named(&name, self.key, priority).map_err(|error| error.to_string()),
            None => Ok(ApiKey { priority, ..ApiKey::unnamed(self.key, place) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<Vec<(String, String, i8)>, String> {
        let lookup = |name: &str| (name == "KEY").then(|| "from outside".to_owned());
        let keys = read(text, lookup)?;
        Ok(keys.into_iter().map(|key| (key.name, key.secret.expose().to_owned(), key.priority)).collect())
    }

    fn key(name: &str, secret: &str, priority: i8) -> (String, String, i8) {
        (name.to_owned(), secret.to_owned(), priority)
    }

    #[test]
    fn a_mistake_in_yaml_is_no_key() {
        for text in ["key:\n  - {name: chat, key: s3cret}\n", "keyz: []", "- s3cret", "\"keys\":\n- a", "[a]"] {
            let error = read(text, |_| None).expect_err(text);
            assert!(error.starts_with("line 1: this is no key") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_file_holds_a_key_a_line_or_names_them() {
        let plain = vec![key("key-1", "a", 0), key("key-2", "b-name=x", 0)];
        assert_eq!(keys("# ours\n a \n\nb-name=x\n"), Ok(plain));
        let named = vec![key("alice", "a", 5), key("key-2", "b", -1), key("key-3", "abc", 0)];
        for text in [
            "# ours\nkeys:\n  - {name: alice, key: a, priority: 5}\n  - priority: -1\n    key: b\n  - abc\n",
            r#"{"keys": [{"name": "alice", "key": "a", "priority": 5}, {"key": "b", "priority": -1}, "abc"]}"#,
            "---\nkeys: [{name: alice, key: a, priority: 5}, {key: b, priority: -1}, 'abc']\n",
        ] {
            assert_eq!(keys(text), Ok(named.clone()), "{text}");
        }
        assert_eq!(keys("keys: [{name: v, key: '${KEY}'}]"), Ok(vec![key("v", "from outside", 0)]));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_no_key_is_shown() {
        for (text, line, words) in [
            ("keys:\n  - {key: hunter2, prio: 1}\n", "line 2", "prio"),
            ("keys:\n  - {name: alice}\n", "line 2", "key"),
            ("keys:\n  - {key: hunter2}\nlimits: 1\n", "line 3", "limits"),
            ("keys:\n  - {key: hunter2}\n  - {name: b, key: hunter2}\n", "line 3", "line 2 already"),
            ("keys:\n  - {name: a, key: hunter2}\n  - {name: a, key: hunter3}\n", "line 3", "taken by line 2"),
            ("keys:\n  - {name: key-2, key: hunter2}\n  - hunter3\n", "line 3", "`key-2` is taken by line 2"),
            ("keys:\n  - hunter2\n  - {name: key-1, key: hunter3}\n", "line 3", "is called by its place"),
            ("keys:\n  - {name: two words, key: hunter2}\n", "line 2", "no name for a key"),
            ("keys:\n  - {name: a, key: hunter2, priority: 128}\n", "line 2", "priority is 128"),
            ("keys:\n  - {name: a, key: hunter2, priority: high}\n", "line 2", "i64"),
            ("keys:\n  - {name: a, key: ''}\n", "line 2", "must not be empty"),
            ("keys:\n  - ''\n", "line 2", "must not be empty"),
            ("keys:\n  - [hunter2]\n", "line 2", "a key in quotes"),
            ("keys:\n  - {key: [hunter2]}\n", "line 2", "string"),
            ("keys: hunter2\n", "line 1", "sequence"),
            ("keys:\n  - {key: ${NONE}}\n", "line 2", "NONE"),
            ("hunter2\n***\n", "line 2", "in place of a key"),
        ] {
            let error = keys(text).expect_err(text);
            assert!(error.contains(line) && error.contains(words), "{text}: {error}");
            assert!(!error.contains("hunter"), "{text}: {error}");
        }
    }

    #[test]
    fn a_number_that_is_a_key_is_taken_or_not_shown() {
        for text in ["keys:\n  - 123456\n", "keys:\n  - {key: 123456}\n", "keys:\n  - 1.5e7\n"] {
            match keys(text) {
                Ok(keys) => assert!(text.contains(&keys[0].1), "{text}: {keys:?}"),
                Err(error) => assert!(!error.contains("123456") && error.contains("line 2"), "{text}: {error}"),
            }
        }
    }

    #[test]
    fn a_key_that_is_given_twice_counts_once_and_keeps_its_name() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "keys: [{name: alice, key: a}]").expect("it is written");
        let given = ["a", "b", "b", "c"].map(Secret::new);
        let keys = client_keys(&given, Some(file.path())).expect("keys");
        assert_eq!(keys.iter().map(|key| &*key.name).collect::<Vec<_>>(), ["alice", "key-3", "key-5"]);
        std::fs::write(file.path(), "keys: []").expect("it is written");
        let error = client_keys(&given, Some(file.path())).expect_err("none in it").to_string();
        assert!(error.ends_with("holds no key"), "{error}");
    }

    #[test]
    fn a_name_in_a_file_that_a_key_outside_has_by_its_place_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "keys: [{name: key-2, key: a}]").expect("it is written");
        let error = client_keys(&[Secret::new("b")], Some(file.path())).expect_err("two of a name").to_string();
        let words = "is that of a key outside it too: a key without a name is called by its place; choose another";
        assert!(error.contains("the name `key-2` in ") && error.ends_with(words), "{error}");
        client_keys(&[Secret::new("a")], Some(file.path())).expect("the same key again is no other");
    }
}
