//! The configuration file.

mod keys;
mod variables;

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

pub(crate) use self::keys::client_keys;
use self::variables::{Filled, Place};
use super::{AttachSection, ControllerSection, GatewaySection, ModelSection, TracesSection, WorkerSection};

/// What the file says; every section may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    pub(crate) controller: ControllerSection,
    pub(crate) worker: WorkerSection,
    pub(crate) gateway: GatewaySection,
    pub(crate) attach: AttachSection,
    pub(crate) models: ModelSection,
    pub(crate) traces: TracesSection,
}

impl File {
    /// Reads the file, if there is one. `${NAME}` stands for an environment variable.
    ///
    /// # Errors
    /// With the line and the column of what is wrong.
    pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let lookup = |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
        let filled = variables::fill(&text, lookup).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        let file: Self = read(&filled).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        let worker = WorkerSection { models: file.models.clone(), ..file.worker };
        Ok(Self { worker, ..file })
    }
}

/// Reads a file's text. An error shows neither the text around it nor the value of a variable.
fn read<T: Default + DeserializeOwned>(filled: &Filled) -> Result<T, String> {
    if filled.text.trim().is_empty() {
        return Ok(T::default());
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&filled.text, options).map_err(|error| {
        let message = filled.hide(&UserMessageFormatter.format_message(&error));
        match error.location() {
            Some(location) => {
                let place = Place { line: location.line() as usize, column: location.column() as usize };
                format!("{}: {message}", filled.in_file(place))
            }
            None => message,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Span;
    use super::*;

    fn load(text: &str) -> anyhow::Result<File> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        File::load(Some(file.path()))
    }

    #[test]
    fn yaml_and_json_are_read_alike() {
        for text in ["controller:\n  port: 7000\n", r#"{"controller": {"port": 7000}}"#] {
            assert_eq!(load(text).expect("a file").controller.port, Some(7000));
        }
        assert_eq!(load("").expect("an empty file").controller.port, None);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_legal_ones() {
        let error = load("gateway:\n  port: 8000\n  prot: 1\n").expect_err("a typo").to_string();
        for part in ["line 3", "column 3", "prot", "port"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn variables_fill_knobs_of_every_kind() {
        let text = "controller: {port: ${PORT}, heartbeat: ${BEAT}, fleet_token: ${PORT}, insecure: ${YES}}";
        let filled = variables::fill(text, |name| {
            Some(match name {
                "PORT" => "7000".to_owned(),
                "BEAT" => "2s".to_owned(),
                _ => "true".to_owned(),
            })
        });
        let file: File = read(&filled.expect("all are there")).expect("a file");
        let controller = file.controller;
        assert_eq!(
            (controller.port, controller.heartbeat, controller.insecure),
            (Some(7000), Some(Span::seconds(2)), Some(true))
        );
        assert_eq!(controller.fleet_token.expect("a token").expose(), "7000");
    }

    #[test]
    fn no_error_shows_the_value_of_a_variable() {
        let value = "hunter2 \"and\" more\nof it";
        for (text, place) in [
            ("controller:\n  heartbeat: ${KEY}\n", "line 2, column 14"),
            ("controller:\n  port: ${KEY}\n", "line 2, column 9"),
            ("controller:\n  ${KEY}: 1\n", "line 2, column 3"),
            ("controller: ${KEY}\n", "line 1, column 13"),
            ("gateway: {api_key: ${KEY}, prot: 1}\n", "line 1, column 20"),
            ("gateway: {api_key: [\"${KEY}\"], prot: 1}\n", "line 1, column 2"),
            ("gateway: {host: ${KEY}, prot: 1}\n", "line 1, column 25"),
            ("gateway:\n  host: ${KEY}\n  host: ${KEY}\n", "line 3, column 3"),
            ("gateway:\n  host: ${KEY}\n bad\n", "line 3"),
        ] {
            let filled = variables::fill(text, |_| Some(value.to_owned())).expect("it is there");
            let error = read::<File>(&filled).expect_err(text);
            assert!(
                !error.contains("hunter2") && !error.contains("more") && !error.contains("of it"),
                "{text}: {error}"
            );
            assert!(error.starts_with(place), "{text}: {error}");
        }
    }

    #[test]
    fn secrets_that_are_none_are_refused() {
        for text in [
            "gateway: {api_key: [\"\"]}",
            "gateway: {api_key: [\" \"]}",
            "gateway: {fleet_token: '***'}",
            "worker: {fleet_token: \"\"}",
            "controller: {fleet_token: \"\"}",
        ] {
            let error = load(text).expect_err(text).to_string();
            assert!(error.contains("line 1, column") && error.contains("key"), "{text}: {error}");
        }
    }
}
