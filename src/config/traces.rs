//! The section of traces, which all services have in common.

use clap::Args;
use muster_shared::secret::Secret;
use muster_shared::trace::{self, Settings};
use serde::{Deserialize, Serialize};

use super::or;

/// Where the OTLP endpoint takes traces.
const TRACES: &str = "/v1/traces";

/// Whether and where requests are traced. The variables are OpenTelemetry's own.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Traces")]
pub(crate) struct TracesSection {
    /// Send traces of requests to this collector, by OTLP as protobuf over HTTP: http://HOST:4318. Off unless set.
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
    /// Headers sent along, such as a key: `name=value,name=value`, values percent-encoded.
    #[arg(
        long,
        global = true,
        env = "OTEL_EXPORTER_OTLP_HEADERS",
        hide_env_values = true,
        value_parser = super::SecretParser,
    )]
    pub(crate) otlp_headers: Option<Secret>,
    /// What the process is called in traces; `muster-gateway` and so on unless set.
    #[arg(long, global = true, env = "OTEL_SERVICE_NAME", value_name = "NAME")]
    pub(crate) service_name: Option<String>,
    /// Part of the requests that is traced, from 0 to 1; a client that is traced itself decides for its own. All unless set.
    #[arg(long, global = true, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "RATIO")]
    pub(crate) trace_ratio: Option<f64>,
}

impl TracesSection {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; otlp_endpoint, otlp_headers, service_name, trace_ratio;)
    }

    /// Begins to trace, if that is wanted. `service`: what the process is called unless said otherwise.
    pub(crate) fn open(&self, service: &str) -> anyhow::Result<()> {
        match self.settings(service)? {
            Some(settings) => trace::open(settings).map_err(|error| anyhow::anyhow!("otlp_endpoint: {error}")),
            None => Ok(()),
        }
    }

    fn settings(&self, service: &str) -> anyhow::Result<Option<Settings>> {
        let Some(endpoint) = self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) else {
            return Ok(None);
        };
        let ratio = self.trace_ratio.unwrap_or(1.0);
        anyhow::ensure!((0.0..=1.0).contains(&ratio), "trace_ratio is {ratio}; it must be from 0 to 1");
        Ok(Some(Settings {
            endpoint: endpoint_of(endpoint)?,
            headers: self.otlp_headers.as_ref().map_or_else(|| Ok(Vec::new()), headers)?,
            service: self.service_name.clone().unwrap_or_else(|| service.to_owned()),
            ratio,
        }))
    }
}

/// Where traces are posted.
fn endpoint_of(text: &str) -> anyhow::Result<String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    anyhow::ensure!(url.is_some(), "otlp_endpoint `{text}` is no URL; write http://HOST:4318");
    let text = text.trim_end_matches('/');
    Ok(if text.ends_with(TRACES) { text.to_owned() } else { format!("{text}{TRACES}") })
}

/// Headers as OpenTelemetry writes them. No error shows a value.
fn headers(text: &Secret) -> anyhow::Result<Vec<(String, Secret)>> {
    let pairs = text.expose().split(',').map(str::trim).filter(|pair| !pair.is_empty()).enumerate();
    let header = |(index, pair): (usize, &str)| {
        let wrong = || anyhow::anyhow!("otlp_headers: number {} is no `name=value`", index + 1);
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        let name = reqwest::header::HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
        let value = decoded(value.trim()).ok_or_else(wrong)?;
        reqwest::header::HeaderValue::try_from(&value).map_err(|_| wrong())?;
        Ok((name.to_string(), Secret::new(value)))
    };
    pairs.map(header).collect()
}

/// A percent-encoded text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_posted_where_collectors_take_them() {
        for (given, posted) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("https://c/otlp/", "https://c/otlp/v1/traces"),
            ("http://c/v1/traces", "http://c/v1/traces"),
        ] {
            assert_eq!(endpoint_of(given).expect(given), posted);
        }
        for given in ["c:4318", "grpc://c:4317", "http://", ""] {
            assert!(endpoint_of(given).is_err(), "{given}");
        }
    }

    #[test]
    fn headers_are_read_and_no_error_shows_one() {
        let read = |text: &str| headers(&Secret::new(text));
        let given = read("x-key=a%20b, other=c=d,").expect("two headers");
        let given: Vec<_> = given.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        assert_eq!(given, [("x-key", "a b"), ("other", "c=d")]);
        for text in ["hunter2", "a=b,hunter2", "a b=hunter2", "a=hunter2%0", "a=hunter2%0a", "a=hunter2%ff"] {
            let error = read(text).expect_err(text).to_string();
            assert!(!error.contains("hunter2") && error.contains("name=value"), "{error}");
        }
    }

    #[test]
    fn nothing_is_traced_without_an_endpoint_and_ratios_are_checked() {
        let section = TracesSection { trace_ratio: Some(2.0), ..TracesSection::default() };
        assert!(section.settings("s").expect("off").is_none());
        let section = TracesSection { otlp_endpoint: Some("http://c".to_owned()), ..section };
        assert!(section.settings("s").expect_err("a ratio").to_string().contains("from 0 to 1"));
        let section = TracesSection { trace_ratio: None, ..section };
        let settings = section.settings("s").expect("fine").expect("on");
        assert_eq!((settings.ratio, settings.service.as_str()), (1.0, "s"));
    }
}
