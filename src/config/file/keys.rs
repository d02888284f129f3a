//! The keys of a gateway's clients: as flags give them, one a line in a file, or in YAML with names and priorities.
//!
//! ```yaml
//! keys:
//!   - name: alice
//!     key: ${ALICE_KEY}
//!     priority: 5
//!     models: [chat, org/*]        # of any other it hears that it does not exist; absent: all
//!     requests_per_minute: 600     # in any sixty seconds; also `rpm`
//!     tokens_per_minute: 100000    # the same, prompts and answers; also `tpm`
//!     max_streams: 8               # streamed answers at the same time
//!     rate: 50/s                   # instead of --rate-limit; `off` for any number
//!     burst: 100                   # at once; twice a second's worth unless said
//!   - key: another
//! ```
//!
//! A key without a name is called by its place, first those of the file, then those of flags: `another` is `key-2`. When the
//! file changes, a key is known by itself wherever it stands then; another key under a name that was given is known by that.
//!
//! Where tokens are limited, a request that does not say how long its answers may be (`max_tokens`) gets answers of 1024
//! tokens at most, or of as many as fit into a minute: what is reserved for it is where they end.

mod limits;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use anyhow::Context as _;
use muster_gateway::{ApiKey, Reload};
use muster_shared::secret::Secret;
use muster_shared::watch;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use super::super::RateGiven;
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
    limits: limits::Given,
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
        f.write_str("a key in quotes, or `name`, `key`, `priority` and limits")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Entry, E> {
        let key = Secret::parse(text).map_err(E::custom)?;
        Ok(Entry { name: None, key, priority: 0, limits: limits::Given::default() })
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
            models: Option<Vec<String>>,
            #[serde(alias = "rpm")]
            requests_per_minute: Option<i64>,
            #[serde(alias = "tpm")]
            tokens_per_minute: Option<i64>,
            max_streams: Option<i64>,
            rate: Option<RateGiven>,
            burst: Option<i64>,
        }
        let Fields { name, key, priority, models, requests_per_minute, tokens_per_minute, max_streams, rate, burst } =
            Fields::deserialize(MapAccessDeserializer::new(map))?;
        let limits = limits::Given { models, requests_per_minute, tokens_per_minute, max_streams, rate, burst };
        Ok(Entry { name, key, priority, limits })
    }
}

fn unquoted<E: Error>() -> E {
    E::custom("a key must be a text; put quotes around it")
}

/// Every key that lets a client in, each once, and the file of them, to be followed while the gateway runs.
///
/// # Errors
/// With the file and the line of what is wrong.
pub(crate) fn client_keys(given: &[Secret], file: Option<&Path>) -> anyhow::Result<(Vec<ApiKey>, Option<Reload>)> {
    let Some(path) = file else { return Ok((together(Vec::new(), given), None)) };
    let text = watch::read(path).with_context(|| format!("cannot read keys from {}", path.display()))?;
    let keys = of_text(given, path, &text).map_err(anyhow::Error::msg)?;
    let (given, path) = (given.to_vec(), path.to_owned());
    let reload = Reload::new(path.clone(), text, move |text| of_text(&given, &path, text));
    Ok((keys, Some(reload)))
}

/// The keys of a file with that text, and those of flags.
fn of_text(given: &[Secret], path: &Path, text: &str) -> Result<Vec<ApiKey>, String> {
    let file = path.display();
    let lookup = |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
    let keys = read(text, lookup).map_err(|error| format!("{file}: {error}"))?;
    if keys.is_empty() {
        return Err(format!("{file} holds no key"));
    }
    let keys = together(keys, given);
    let mut names = HashSet::new();
    match keys.iter().find(|key| !names.insert(key.name.as_str())) {
        // The file's own names are told apart already.
        Some(ApiKey { name, .. }) => {
            Err(format!("the name `{name}` in {file} is that of a key outside it too: {UNNAMED}; choose another"))
        }
        None => Ok(keys),
    }
}

/// The keys of a file and those of flags; said twice, it is still one.
fn together(mut keys: Vec<ApiKey>, given: &[Secret]) -> Vec<ApiKey> {
    let flags = given.iter().cloned().zip(keys.len() + 1..);
    keys.extend(flags.map(|(secret, place)| ApiKey::unnamed(secret, place)));
    let mut secrets = HashSet::new();
    keys.retain(|key| secrets.insert(key.secret.expose().to_owned()));
    keys
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
        let place = filled.in_file(place);
        let key = entry.into_key(keys.len() + 1).map_err(|error| format!("{place}: {}", filled.hide(&error)))?;
        let line = place.line;
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
        let (models, limits) = self.limits.check()?;
        let key = match self.name {
            Some(name) => ApiKey::named(&name, self.key, priority).map_err(|error| error.to_string())?,
            None => ApiKey::unnamed(self.key, place).with_priority(priority),
        };
        Ok(key.with_models(models).with_limits(limits))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use muster_gateway::{KeyLimits, KeyRate, Models};

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
            ("keys:\n  - {name: a, key: hunter2, rpm: 0}\n", "line 2, column 5", "requests_per_minute is 0; expected"),
            ("keys:\n  - {key: hunter2, requests_per_minute: -5}\n", "line 2", "requests_per_minute is -5"),
            ("keys:\n  - {key: hunter2, tpm: 5000000000}\n", "line 2", "tokens_per_minute is 5000000000; expected"),
            ("keys:\n  - {key: hunter2, tpm: many}\n", "line 2, column 25", "i64"),
            ("keys:\n  - {key: hunter2, tpm: 1.5}\n", "line 2", "i64"),
            ("keys:\n  - {key: hunter2, tpm: 5, tokens_per_minute: 6}\n", "line 2", "duplicate"),
            ("keys:\n  - {key: hunter2, max_streams: 0}\n", "line 2", "max_streams is 0"),
            ("keys:\n  - {key: hunter2, max_requests: 1}\n", "line 2", "max_requests"),
            ("keys:\n  - {key: hunter2, models: []}\n", "line 2", "models is empty"),
            ("keys:\n  - {key: hunter2, models: ['']}\n", "line 2", "empty name"),
            ("keys:\n  - {key: hunter2, models: ['a*b']}\n", "line 2", "a `*` may stand at the end only"),
            ("keys:\n  - {key: hunter2, models: chat}\n", "line 2", "sequence"),
            ("keys:\n  - {key: hunter2, rate: 100}\n", "line 2", "100 is no rate; say in which time"),
            ("keys:\n  - {key: hunter2, rate: 0/s}\n", "line 2", "`0/s` is no rate"),
            ("keys:\n  - {key: hunter2, burst: 5}\n", "line 2", "say `rate` too"),
            ("keys:\n  - {key: hunter2, rate: off, burst: 5}\n", "line 2", "say `rate` too"),
            ("keys:\n  - {key: hunter2, rate: 1/s, burst: 0}\n", "line 2", "burst is 0"),
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
    fn limits_are_read_by_either_name() {
        for text in [
            "keys:\n  - {key: a, models: [m, 'org/*'], rpm: 60, tpm: 1000, max_streams: 2, rate: 5/s, burst: 9}\n",
            "keys:\n  - key: a\n    models: [m, org/*]\n    requests_per_minute: 60\n    tokens_per_minute: 1000\n    \
             max_streams: 2\n    rate: 5/s\n    burst: 9\n",
        ] {
            let keys = read(text, |_| None).expect(text);
            let KeyLimits { requests_per_minute, tokens_per_minute, max_streams, rate } = keys[0].limits.clone();
            let numbers =
                [requests_per_minute, tokens_per_minute, max_streams].map(|number| number.map(NonZeroU32::get));
            assert_eq!(numbers, [Some(60), Some(1000), Some(2)]);
            assert!(matches!(rate, KeyRate::Own(limit) if limit.to_string() == "5/s with 9 at once"), "{rate:?}");
            assert_eq!(keys[0].models, Models::parse(&["m".to_owned(), "org/*".to_owned()]).ok());
        }
        let rate = |text: &str| read(&format!("keys: [{{key: a, {text}}}]"), |_| None).expect(text)[0].limits.rate;
        assert!(rate("rate: off") == KeyRate::Off && rate("rpm: 1") == KeyRate::Usual);
        assert!(matches!(rate("rate: 600/min"), KeyRate::Own(limit) if limit.burst.get() == 20));
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
        let keys = client_keys(&given, Some(file.path())).expect("keys").0;
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
