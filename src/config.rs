//! Configuration: flags win over `MUSTER_*` variables, these over the file, the file over the defaults.
//!
//! A section has one field for each knob, all optional. The first of flags, file and defaults that says something
//! wins ([`ControllerSection::or`] and its like); what comes out is checked once, when it becomes a service's
//! `Config`. This is the only place that reads the environment.

mod attach;
mod controller;
#[cfg(test)]
#[path = "../tests/fuzz/checks/config_file.rs"]
mod corpus;
mod file;
mod gateway;
mod hub;
mod names;
mod rate;
mod share;
mod tls;
mod traces;
mod worker;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::{BoolishValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command};
use muster_shared::secret::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use attach::{AttachConfig, AttachSection, Offer, Target};
pub(crate) use controller::{ControllerSection, policy_help};
pub(crate) use file::File;
pub(crate) use gateway::{GatewaySection, GrpcPort};
pub(crate) use rate::RateGiven;
pub(crate) use share::Share;
pub(crate) use tls::{CallerTls, TlsSection};
pub(crate) use traces::TracesSection;
pub(crate) use worker::{ModelSection, WorkerSection};

/// `self`, and from `other` whatever it leaves open. Of two knobs that belong together, `(one, two)`, whoever says one
/// says both.
macro_rules! or {
    ($this:expr, $other:expr; $($field:ident),*; $(($one:ident, $two:ident)),*) => {{
        let (this, other) = ($this, $other);
        $(
            let said = this.$one.is_some() || this.$two.is_some();
            let ($one, $two) = if said { (this.$one, this.$two) } else { (other.$one, other.$two) };
        )*
        Self { $($field: this.$field.or(other.$field),)* $($one, $two,)* }
    }};
}
pub(crate) use or;

/// Flags that belong together, by their names in `clap`, as in the sections' `or`.
pub(crate) const PAIRS: [(&str, &str); 8] = [
    ("fleet_token", "fleet_token_file"),
    ("admin_key", "admin_key_file"),
    ("api_key", "api_key_file"),
    ("openai_key", "openai_key_file"),
    ("model", "model_names"),
    ("tls_cert", "tls_key"),
    ("pause_cpu", "resume_cpu"),
    ("pause_memory", "resume_memory"),
];

/// A duration as people write it: `15s`, `500ms`, `2m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    pub(crate) fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for Span {
    type Err = String;

    /// Reads a duration; a bare number means seconds, as in FastChat's variables.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(seconds) = text.parse::<u64>() {
            return Ok(Self::seconds(seconds));
        }
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|error| format!("`{text}` is no duration ({error}); write `15s`, `500ms` or `2m`"))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&humantime::format_duration(self.0).to_string())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads secrets from flags and variables. Unlike `clap`'s own parsers it never repeats what it was given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SecretParser;

impl TypedValueParser for SecretParser {
    type Value = Secret;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Secret, clap::Error> {
        let flag = arg.map(|arg| format!("{arg}: ")).unwrap_or_default();
        let refused =
            |reason: &str| clap::Error::raw(ErrorKind::ValueValidation, format!("{flag}{reason}\n")).with_cmd(command);
        let text = value.to_str().ok_or_else(|| refused("a key must be UTF-8"))?;
        Secret::parse(text).map_err(|error| refused(&error.to_string()))
    }
}

/// Reads switches as people write them in variables: `1`, `yes`, `on`, `true`, and their opposites.
pub(crate) fn switch() -> BoolishValueParser {
    BoolishValueParser::new()
}

/// Secrets from a file, one a line; empty lines and lines that begin with `#` do not count.
fn secrets_of_file(path: &Path) -> anyhow::Result<Vec<Secret>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read keys from {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let secrets: Result<Vec<Secret>, _> = lines.map(Secret::parse).collect();
    let secrets = secrets.with_context(|| format!("{} holds a line that is no key", path.display()))?;
    anyhow::ensure!(!secrets.is_empty(), "{} holds no key", path.display());
    Ok(secrets)
}

/// The one secret of a flag, a variable or a file.
pub(crate) fn one_secret(given: Option<Secret>, file: Option<&Path>) -> anyhow::Result<Option<Secret>> {
    match (given, file) {
        (Some(token), _) => Ok(Some(token)),
        (None, Some(path)) => Ok(secrets_of_file(path)?.into_iter().next()),
        (None, None) => Ok(None),
    }
}

/// Checks the base URL of a peer.
pub(crate) fn base_url(what: &str, url: &str) -> anyhow::Result<String> {
    let parsed =
        reqwest::Url::parse(url).with_context(|| format!("{what} `{url}` is no URL; write http://HOST:PORT"))?;
    anyhow::ensure!(
        matches!(parsed.scheme(), "http" | "https") && parsed.has_host(),
        "{what} `{url}` must begin with http://HOST or https://HOST"
    );
    Ok(url.trim_end_matches('/').to_owned())
}

/// Checks the base URL of one that is measured, by clients that speak no TLS.
pub(crate) fn plain_url(what: &str, url: &str) -> anyhow::Result<String> {
    let url = base_url(what, url)?;
    anyhow::ensure!(
        url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:")),
        "{what} `{url}` must begin with http://HOST; https is not supported by these measurements"
    );
    Ok(url)
}

/// Whether a variable is set that some other verb of muster reads.
pub(crate) fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some()
}

/// The folder in which programs keep what they can fetch again.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzz_target_for_files_holds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/config_file");
        for input in std::fs::read_dir(folder).expect("a corpus") {
            let input = input.expect("an entry").path();
            println!("{}", input.display()); // the last one is at fault when the check panics
            corpus::config_file(&std::fs::read(input).expect("a file"));
        }
    }

    fn path(text: &str) -> Option<PathBuf> {
        Some(text.into())
    }

    #[test]
    fn knobs_that_belong_together_come_from_one_layer() {
        let token = || Some(Secret::new("upper"));
        let flags = ControllerSection { fleet_token: token(), ..ControllerSection::default() };
        let file =
            || ControllerSection { fleet_token_file: path("lower"), port: Some(1), ..ControllerSection::default() };
        let both = flags.or(file());
        assert_eq!((both.fleet_token.is_some(), both.fleet_token_file, both.port), (true, None, Some(1)));
        assert_eq!(ControllerSection::default().or(file()).fleet_token_file, path("lower"));

        let flags = GatewaySection { api_key_file: path("upper"), ..GatewaySection::default() };
        let file = GatewaySection {
            api_key: Some(vec![Secret::new("lower")]),
            fleet_token: token(),
            ..GatewaySection::default()
        };
        let both = flags.or(file);
        assert_eq!(
            (both.api_key.is_some(), both.api_key_file, both.fleet_token.is_some()),
            (false, path("upper"), true)
        );

        let flags = ModelSection { model: Some(vec!["fake".to_owned()]), ..ModelSection::default() };
        let file = ModelSection { model_names: Some(vec!["a".to_owned(), "b".to_owned()]), ..ModelSection::default() };
        assert_eq!(flags.or(file).model_names, None);
    }
}
