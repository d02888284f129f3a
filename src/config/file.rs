//! The configuration file.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use super::{ControllerSection, GatewaySection, ModelSection, WorkerSection};

/// What the file says; every section may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    pub(crate) controller: ControllerSection,
    pub(crate) worker: WorkerSection,
    pub(crate) gateway: GatewaySection,
    pub(crate) models: ModelSection,
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
        let text = interpolate(&text, lookup).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let file: Self = serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        let worker = WorkerSection { models: file.models.clone(), ..file.worker };
        Ok(Self { worker, ..file })
    }
}

/// Puts variables in the place of their names.
fn interpolate(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let mut rest = line;
        while !line.trim_start().starts_with('#')
            && let Some((before, after)) = rest.split_once("${")
        {
            let column = line.len() - rest.len() + before.len() + 1;
            let place = format!("line {}, column {column}", number + 1);
            let (name, tail) = after.split_once('}').ok_or_else(|| format!("{place}: `${{` without `}}`"))?;
            let value = lookup(name).ok_or_else(|| format!("{place}: the environment has no variable `{name}`"))?;
            out.push_str(before);
            out.push_str(&value);
            rest = tail;
        }
        out.push_str(rest);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
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
    fn variables_are_put_in_and_missing_ones_are_named() {
        let lookup = |name: &str| (name == "KEY").then(|| "secret".to_owned());
        assert_eq!(
            interpolate("a: ${KEY}\n# ${NO}\nb: x${KEY}y", lookup),
            Ok("a: secret\n# ${NO}\nb: xsecrety".into())
        );
        let error = interpolate("a: 1\nb: ${NO}", lookup).expect_err("no such variable");
        assert_eq!(error, "line 2, column 4: the environment has no variable `NO`");
    }
}
