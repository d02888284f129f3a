//! The hub, by the variables that Python's `huggingface_hub` reads.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use muster_shared::secret::Secret;
use muster_worker::hub::HubConfig;

/// What the environment says of the hub.
pub(super) fn hub_config() -> anyhow::Result<HubConfig> {
    read(|name| std::env::var_os(name))
}

/// * `HF_ENDPOINT`: another hub.
/// * `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`: where models are kept.
/// * `HF_TOKEN`, else the file at `HF_TOKEN_PATH` or `HF_HOME/token`: for repositories that not everybody may see.
/// * `HF_HUB_OFFLINE`: use only what is there.
fn read(lookup: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<HubConfig> {
    // A variable that is set to nothing counts as not set.
    let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let path = |name: &str| set(name).map(PathBuf::from);
    let usual = HubConfig::default();
    let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    let home = path("HF_HOME").or_else(|| Some(caches?.join("huggingface")));
    let beside = |name: &str| home.as_deref().map(|home| home.join(name));
    let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(|| beside("hub"));
    let text =
        |name: &str| set(name).map(|value| value.into_string().map_err(|_| anyhow::anyhow!("{name} is no UTF-8")));
    let token = match text("HF_TOKEN").transpose()? {
        Some(token) => Some(Secret::parse(&token).context("HF_TOKEN")?),
        None => path("HF_TOKEN_PATH").or_else(|| beside("token")).map_or(Ok(None), |file| token_of_file(&file))?,
    };
    Ok(HubConfig {
        endpoint: text("HF_ENDPOINT").transpose()?.map_or(Ok(usual.endpoint), |url| endpoint(&url))?,
        cache,
        token,
        offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().filter_map(set).any(|value| is_yes(&value)),
    })
}

fn token_of_file(file: &Path) -> anyhow::Result<Option<Secret>> {
    match std::fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(Secret::parse(&text).with_context(|| format!("{} holds no token", file.display()))?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read the hub's token from {}", file.display())),
    }
}

fn endpoint(url: &str) -> anyhow::Result<String> {
    let parsed = reqwest::Url::parse(url).with_context(|| format!("HF_ENDPOINT `{url}` is no URL"))?;
    anyhow::ensure!(
        matches!(parsed.scheme(), "http" | "https") && parsed.has_host(),
        "HF_ENDPOINT `{url}` must begin with https://HOST or http://HOST"
    );
    Ok(url.trim_end_matches('/').to_owned())
}

/// As Python reads it: `1`, `ON`, `YES`, `TRUE`.
fn is_yes(value: &OsString) -> bool {
    let value = value.to_string_lossy().to_ascii_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> anyhow::Result<HubConfig> {
        read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value)))
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let cache = |variables: &[_]| config(variables).expect("a configuration").cache;
        for (variables, expected) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/f")], "/f/hub"),
            (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "")], "/f/hub"),
        ] {
            assert_eq!(cache(variables), Some(expected.into()), "{variables:?}");
        }
        assert_eq!(cache(&[]), None);
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().display().to_string();
        let token =
            |variables: &[_]| config(variables).expect("a configuration").token.map(|token| token.expose().to_owned());
        assert_eq!(token(&[("HF_HOME", &home)]), None);
        std::fs::write(folder.path().join("token"), "hf_file\n").expect("a file");
        assert_eq!(token(&[("HF_HOME", &home)]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", &home), ("HF_TOKEN", "hf_said")]).as_deref(), Some("hf_said"));
    }

    #[test]
    fn an_endpoint_that_is_none_is_refused_by_name() {
        for url in ["huggingface.co", "ftp://host", "http://"] {
            let error = config(&[("HF_ENDPOINT", url)]).expect_err(url).to_string();
            assert!(error.contains("HF_ENDPOINT") && error.contains(url), "{error}");
        }
        let config = config(&[("HF_ENDPOINT", "http://mirror:8080/"), ("HF_HUB_OFFLINE", "yes")]).expect("a mirror");
        assert_eq!((config.endpoint.as_str(), config.offline), ("http://mirror:8080", true));
    }
}
