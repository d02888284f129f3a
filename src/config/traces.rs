//! The section of traces, which all services have in common.

use clap::Args;
use muster_shared::secret::Secret;
use muster_shared::trace::{self, Settings};
use serde::{Deserialize, Serialize};

use super::or;

/// Where the OTLP endpoint takes traces.
const TRACES: &str = "/v1/traces";
/// The part of the requests that is traced, with the samplers that take one.
const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// Whether and where requests are traced. The variables are OpenTelemetry's own.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Traces")]
pub(crate) struct TracesSection {
    /// Send traces of requests to this collector, by OTLP as protobuf over HTTP: http://HOST:4318. Off unless set.
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true, value_name = "URL")]
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
    /// Part of the requests that is traced, from 0 to 1; a client that is traced itself decides for its own. Unless set,
    /// OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG decide, and where they do not either, all are traced.
    #[arg(long, global = true, value_name = "RATIO")]
    pub(crate) trace_ratio: Option<f64>,
}

impl TracesSection {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; otlp_endpoint, otlp_headers, service_name, trace_ratio;)
    }

    /// Begins to trace, if that is wanted. `service`: what the process is called unless said otherwise.
    pub(crate) fn open(&self, service: &str) -> anyhow::Result<()> {
        match self.settings(service, |name| std::env::var_os(name)?.into_string().ok())? {
            Some(settings) => trace::open(settings).map_err(|error| anyhow::anyhow!("otlp_endpoint: {error}")),
            None => Ok(()),
        }
    }

    /// `variable`: what a variable of the environment says. Only who traces looks at them: they may be meant for others.
    fn settings(&self, service: &str, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Settings>> {
        let Some(endpoint) = self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) else {
            return Ok(None);
        };
        if variable("OTEL_SDK_DISABLED").is_some_and(|text| text.trim().eq_ignore_ascii_case("true")) {
            tracing::warn!("OTEL_SDK_DISABLED is true: nothing is traced, though there is an endpoint for traces");
            return Ok(None);
        }
        let (heeds_parents, ratio) = match self.trace_ratio {
            Some(ratio) => (true, in_range("trace_ratio", ratio)?),
            None => sampler(variable("OTEL_TRACES_SAMPLER"), variable("OTEL_TRACES_SAMPLER_ARG"))?,
        };
        Ok(Some(Settings {
            endpoint: endpoint_of(endpoint)?,
            headers: self.otlp_headers.as_ref().map_or_else(|| Ok(Vec::new()), headers)?,
            service: self.service_name.clone().unwrap_or_else(|| service.to_owned()),
            ratio,
            heeds_parents,
        }))
    }
}

/// What OpenTelemetry's variables say: whether whoever asks decides for its own requests, and the part of the others.
fn sampler(name: Option<String>, argument: Option<String>) -> anyhow::Result<(bool, f64)> {
    let said = |text: Option<String>| text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let ratio = |heeds_parents: bool| -> anyhow::Result<(bool, f64)> {
        let Some(text) = said(argument) else { return Ok((heeds_parents, 1.0)) };
        let ratio =
            text.parse::<f64>().map_err(|_| anyhow::anyhow!("{ARGUMENT} is `{text}`; it must be a number from 0 to 1"));
        Ok((heeds_parents, in_range(ARGUMENT, ratio?)?))
    };
    match said(name).map(|name| name.to_ascii_lowercase()).as_deref() {
        None | Some("parentbased_traceidratio") => ratio(true),
        Some("traceidratio") => ratio(false),
        Some("parentbased_always_on") => Ok((true, 1.0)),
        Some("parentbased_always_off") => Ok((true, 0.0)),
        Some("always_on") => Ok((false, 1.0)),
        Some("always_off") => Ok((false, 0.0)),
        Some(other) => {
            tracing::warn!(
                "OTEL_TRACES_SAMPLER is `{other}`, which muster does not have; all requests are traced, as with \
                 `parentbased_always_on`"
            );
            Ok((true, 1.0))
        }
    }
}

fn in_range(name: &str, ratio: f64) -> anyhow::Result<f64> {
    anyhow::ensure!((0.0..=1.0).contains(&ratio), "{name} is {ratio}; it must be from 0 to 1");
    Ok(ratio)
}

/// Where traces are posted.
fn endpoint_of(text: &str) -> anyhow::Result<String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    // Whatever stands before an `@` may be a password: no error shows it, nor may the address that is printed and logged.
    anyhow::ensure!(
        !text.contains('@'),
        "otlp_endpoint holds a user's name or an `@`; write http://HOST:4318, and say who you are with --otlp-headers: \
         authorization=Basic%20..."
    );
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
        for given in ["http://user:hunter2@c:4318", "https://hunter2@c", "htp://user:hunter2@c", "user:hunter2@c:4318"]
        {
            let error = endpoint_of(given).expect_err(given).to_string();
            assert!(!error.contains("hunter2") && error.contains("--otlp-headers"), "{error}");
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
        assert!(section.settings("s", |_| None).expect("off").is_none());
        let section = TracesSection { otlp_endpoint: Some("http://c".to_owned()), ..section };
        assert!(section.settings("s", |_| None).expect_err("a ratio").to_string().contains("from 0 to 1"));
        let section = TracesSection { trace_ratio: None, ..section };
        let settings = section.settings("s", |_| None).expect("fine").expect("on");
        assert_eq!((settings.ratio, settings.service.as_str()), (1.0, "s"));
    }

    #[test]
    fn opentelemetrys_own_variables_are_heeded_where_something_is_traced_and_only_there() {
        let section = TracesSection { otlp_endpoint: Some("http://c".to_owned()), ..TracesSection::default() };
        let read = |section: &TracesSection, name: &str, argument: &str| {
            let said = |variable: &str| match variable {
                "OTEL_TRACES_SAMPLER" => Some(name.to_owned()),
                "OTEL_TRACES_SAMPLER_ARG" => Some(argument.to_owned()),
                _ => None,
            };
            Ok::<_, anyhow::Error>(section.settings("s", said)?.map(|found| (found.heeds_parents, found.ratio)))
        };
        let foreign = "endpoint=http://localhost:14250,pollingIntervalMs=5000";
        for (name, argument, right) in [
            ("", "", (true, 1.0)),
            ("", "0.25", (true, 0.25)),
            ("parentbased_traceidratio", "0.25", (true, 0.25)),
            ("TraceIdRatio", " 0.25 ", (false, 0.25)),
            ("traceidratio", "", (false, 1.0)),
            ("always_on", "0.25", (false, 1.0)),
            ("always_off", "", (false, 0.0)),
            ("parentbased_always_on", foreign, (true, 1.0)),
            ("parentbased_always_off", "", (true, 0.0)),
            ("jaeger_remote", foreign, (true, 1.0)),
        ] {
            assert_eq!(read(&section, name, argument).expect(name), Some(right), "{name} {argument}");
        }
        for (name, argument) in [("", foreign), ("traceidratio", "2"), ("parentbased_traceidratio", "NaN")] {
            let error = read(&section, name, argument).expect_err(argument).to_string();
            assert!(error.contains("OTEL_TRACES_SAMPLER_ARG") && error.contains("from 0 to 1"), "{error}");
        }
        let flag = TracesSection { trace_ratio: Some(0.5), ..section.clone() };
        assert_eq!(read(&flag, "always_off", foreign).expect("the flag prevails"), Some((true, 0.5)));
        assert_eq!(read(&TracesSection::default(), "", foreign).expect("nothing is traced"), None);
        let disabled = section.settings("s", |name| (name == "OTEL_SDK_DISABLED").then(|| "True".to_owned()));
        assert!(disabled.expect("fine").is_none());
    }
}
