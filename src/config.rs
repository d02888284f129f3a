//! Configuration: flags win over `MUSTER_*` variables, these over the file, the file over the defaults.
//!
//! A section has one field for each knob, all optional. The first of flags, file and defaults that says something
//! wins ([`ControllerSection::or`] and its like); what comes out is checked once, when it becomes a service's
//! `Config`. This is the only place that reads the environment.

mod controller;
mod file;
mod gateway;
mod worker;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use muster_shared::secret::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use controller::ControllerSection;
pub(crate) use file::File;
pub(crate) use gateway::GatewaySection;
pub(crate) use worker::{ModelSection, WorkerSection};

/// `self`, and from `other` whatever it leaves open.
macro_rules! or {
    ($this:expr, $other:expr; $($field:ident),* $(,)?) => {
        Self { $($field: $this.$field.or($other.$field)),* }
    };
}
pub(crate) use or;

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

/// A secret from a flag or a variable.
pub(crate) fn secret(text: &str) -> Result<Secret, String> {
    if text.trim().is_empty() { Err("a key must not be empty".to_owned()) } else { Ok(Secret::new(text.trim())) }
}

/// Secrets from a file, one a line; empty lines and lines that begin with `#` do not count.
pub(crate) fn secrets_of_file(path: &Path) -> anyhow::Result<Vec<Secret>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read keys from {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let secrets: Vec<Secret> = lines.map(Secret::new).collect();
    anyhow::ensure!(!secrets.is_empty(), "{} holds no key", path.display());
    Ok(secrets)
}

/// The one token of a flag, a variable or a file.
pub(crate) fn fleet_token(given: Option<Secret>, file: Option<&Path>) -> anyhow::Result<Option<Secret>> {
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
        parsed.scheme() == "http" && parsed.has_host(),
        "{what} `{url}` must begin with http://HOST; https is not supported between services yet"
    );
    Ok(url.trim_end_matches('/').to_owned())
}

/// The folder in which programs keep what they can fetch again.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
}
