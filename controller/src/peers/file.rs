//! The peers file.
use reqwest::Url;
/// An address as peers have it.
pub(crate) fn normal(address: &str) -> Option<String> {
    let url = Url::parse(address).ok()?;
    Some(url.as_str().trim_end_matches('/').to_owned())
}
