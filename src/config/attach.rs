//! The section of `muster attach`.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use muster_shared::control::Capacity;
use muster_shared::id::WorkerId;
use muster_shared::secret::Secret;
use muster_shared::tls::Tls;
use muster_shared::transport::Transport;
use serde::{Deserialize, Serialize};

use super::{CallerTls, Span, base_url, one_secret, or};

/// What `muster attach` can be told. Everything but the address and the id holds for all its servers.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AttachSection {
    /// Base URL of a server, with or without `/v1`; several may be given.
    ///
    /// Gateways must reach it at this address, too.
    #[arg(env = "MUSTER_ATTACH_URL", value_delimiter = ',', value_name = "URL")]
    #[serde(alias = "urls")]
    pub(crate) url: Option<Vec<String>>,
    /// Protocol that the servers speak: `openai`, `fastchat`, `http` (muster's workers) or `grpc`.
    #[arg(long, env = "MUSTER_ATTACH_TRANSPORT", value_name = "NAME")]
    pub(crate) transport: Option<Transport>,
    /// Model to offer; may be given several times. Without: those that the server lists.
    #[arg(long, env = "MUSTER_ATTACH_MODEL", value_delimiter = ',', value_name = "NAME")]
    #[serde(alias = "models")]
    pub(crate) model: Option<Vec<String>>,
    /// Requests of one model that a server runs together; what the server says when absent, or no limit.
    #[arg(long, env = "MUSTER_ATTACH_RUNNING", value_name = "N")]
    pub(crate) running: Option<NonZeroU32>,
    /// Requests of one model that may wait in a server besides.
    #[arg(long, env = "MUSTER_ATTACH_WAITING", value_name = "N")]
    pub(crate) waiting: Option<u32>,
    /// Speed of a server, relative to the other workers.
    #[arg(long, env = "MUSTER_ATTACH_SPEED", allow_negative_numbers = true)]
    pub(crate) speed: Option<f64>,
    /// Base URL of the controller.
    #[arg(long, env = "MUSTER_CONTROLLER_ADDRESS", value_name = "URL")]
    pub(crate) controller_address: Option<String>,
    /// Token that every service of the fleet shows to the others. A server that speaks OpenAI's API is not shown it.
    #[arg(long, env = "MUSTER_FLEET_TOKEN", hide_env_values = true, value_parser = super::SecretParser)]
    pub(crate) fleet_token: Option<Secret>,
    /// File that holds the fleet's token.
    #[arg(long, env = "MUSTER_FLEET_TOKEN_FILE")]
    pub(crate) fleet_token_file: Option<PathBuf>,
    /// Files of TLS.
    #[command(flatten)]
    #[serde(skip_serializing_if = "CallerTls::is_empty")]
    pub(crate) tls: CallerTls,
    /// Time between two looks whether a server answers, and at its models.
    #[arg(long, env = "MUSTER_ATTACH_PROBE")]
    pub(crate) probe: Option<Span>,
    /// Name of the worker, where one server is given; its URL when absent.
    #[arg(long, env = "MUSTER_ATTACH_ID", value_name = "NAME")]
    pub(crate) id: Option<String>,
    /// Time that running requests get when this process stops, before the servers leave the fleet.
    #[arg(long, env = "MUSTER_ATTACH_DRAIN")]
    pub(crate) drain: Option<Span>,
}

/// What `muster attach` does, checked.
#[derive(Debug, Clone)]
pub(crate) struct AttachConfig {
    /// The servers, each once.
    pub(crate) targets: Vec<Target>,
    /// What is offered of each.
    pub(crate) offer: Offer,
    /// Base URL of the controller.
    pub(crate) controller: String,
    /// The fleet's token.
    pub(crate) token: Option<Secret>,
    /// What it shows, and whom it trusts.
    pub(crate) tls: Tls,
    /// Time between two looks at a server.
    pub(crate) probe: Duration,
    /// Longest wait for running requests at the end.
    pub(crate) drain: Duration,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its name in the fleet.
    pub(crate) id: WorkerId,
    /// Its base URL, without `/v1` and a trailing slash.
    pub(crate) address: String,
}

/// How a server is offered to the fleet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Offer {
    /// The protocol it speaks.
    pub(crate) transport: Transport,
    /// Its models; empty: those that it lists.
    pub(crate) models: Vec<String>,
    /// Requests in flight of each model; absent: what the server says, if it does.
    pub(crate) capacity: Option<Capacity>,
    /// Relative to the other workers.
    pub(crate) speed: f64,
}

impl AttachSection {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; tls, url, transport, model, running, waiting, speed, controller_address, probe, id, drain;
            (fleet_token, fleet_token_file))
    }

    /// Everything said.
    pub(crate) fn defaults() -> Self {
        Self {
            url: None,
            transport: Some(Transport::OpenAi),
            model: None,
            running: None,
            waiting: None,
            speed: Some(1.0),
            controller_address: Some("http://127.0.0.1:21001".to_owned()),
            fleet_token: None,
            fleet_token_file: None,
            tls: CallerTls::default(),
            probe: Some(Span::seconds(2)),
            id: None,
            drain: Some(Span::seconds(30)),
        }
    }

    /// Checks everything, and makes it the configuration.
    pub(crate) fn config(&self) -> anyhow::Result<AttachConfig> {
        let span = |given: Option<Span>| given.map_or(Duration::ZERO, |Span(duration)| duration);
        let (probe, drain) = (span(self.probe), span(self.drain));
        ensure!(!probe.is_zero(), "probe is 0; it must be longer, as in --probe 2s");
        let controller = self.controller_address.as_deref().unwrap_or_default();
        Ok(AttachConfig {
            targets: self.targets()?,
            offer: self.offer()?,
            controller: base_url("controller_address", controller)?,
            token: one_secret(self.fleet_token.clone(), self.fleet_token_file.as_deref())?,
            tls: self.tls.load()?,
            probe,
            drain,
        })
    }

    fn targets(&self) -> anyhow::Result<Vec<Target>> {
        let urls = self.url.as_deref().unwrap_or_default();
        ensure!(!urls.is_empty(), "no server is given; write `muster attach http://HOST:PORT`");
        if let Some(id) = &self.id {
            ensure!(!id.is_empty(), "id is empty; leave it out, and the server's URL is its name");
            ensure!(urls.len() == 1, "id names one server, and {} are given; run `muster attach` for each", urls.len());
        }
        let mut targets: Vec<Target> = Vec::with_capacity(urls.len());
        for url in urls {
            let address = server(url)?;
            ensure!(
                targets.iter().all(|target| target.address != address),
                "the server {address} is given twice (the second time as `{url}`); give it once"
            );
            let id = WorkerId::new(self.id.as_deref().unwrap_or(&address));
            targets.push(Target { id, address });
        }
        Ok(targets)
    }

    fn offer(&self) -> anyhow::Result<Offer> {
        let transport = self.transport.unwrap_or(Transport::OpenAi);
        let models = self.model.clone().unwrap_or_default();
        let mut seen = HashSet::new();
        for name in &models {
            ensure!(!name.is_empty(), "the name of a model is empty");
            ensure!(seen.insert(name), "the model `{name}` is given twice; give it once");
        }
        ensure!(
            transport != Transport::Grpc || !models.is_empty(),
            "a server cannot be asked for its models over grpc; name them with --model"
        );
        let speed = self.speed.unwrap_or(1.0);
        ensure!(speed.is_finite() && speed > 0.0, "speed is {speed}; it must be a number above 0");
        let capacity = match (self.running, self.waiting) {
            (Some(running), waiting) => Some(Capacity { running: running.get(), waiting: waiting.unwrap_or(0) }),
            (None, Some(_)) => anyhow::bail!("waiting counts beside running; say how many run, too: --running N"),
            (None, None) => None,
        };
        Ok(Offer { transport, models, capacity, speed })
    }
}

/// The base URL of a server in one spelling, so that two of the same are seen to be.
fn server(given: &str) -> anyhow::Result<String> {
    let wanted = "write http://HOST:PORT";
    let mut url = reqwest::Url::parse(given).with_context(|| format!("`{given}` is no URL; {wanted}"))?;
    ensure!(
        matches!(url.scheme(), "http" | "https") && url.has_host(),
        "`{given}` does not begin with http://HOST or https://HOST; {wanted}"
    );
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "the URL of {} holds a user or a password, which gateways cannot show it; {wanted}",
        url.host_str().unwrap_or_default()
    );
    ensure!(url.query().is_none() && url.fragment().is_none(), "`{given}` has more than an address; {wanted}");
    let path = url.path().trim_end_matches('/');
    let base = path.strip_suffix("/v1").unwrap_or(path).trim_end_matches('/').to_owned();
    url.set_path(&base);
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(urls: &[&str]) -> AttachSection {
        let url = Some(urls.iter().map(|&url| url.to_owned()).collect());
        AttachSection { url, ..AttachSection::default() }.or(AttachSection::defaults())
    }

    fn refused(section: &AttachSection) -> String {
        format!("{:#}", section.config().expect_err("it is wrong"))
    }

    #[test]
    fn a_server_has_one_spelling() {
        for (given, address) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
            ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
            ("HTTP://Vllm.Example:80/v1//", "http://vllm.example"),
            ("http://[::1]:8000/base/v1/", "http://[::1]:8000/base"),
            ("http://v1", "http://v1"),
            ("HTTPS://Vllm.Example:443/v1", "https://vllm.example"),
        ] {
            assert_eq!(server(given).expect(given), address);
        }
        for (given, part) in [
            ("", "is no URL"),
            ("vllm", "is no URL"),
            ("localhost:8000", "does not begin with http://HOST"),
            ("ftp://vllm", "does not begin with http://HOST"),
            ("http://vllm?key=x", "more than an address"),
            ("http://me:secret@vllm", "user or a password"),
        ] {
            let error = format!("{:#}", server(given).expect_err(given));
            assert!(error.contains(part) && !error.contains("secret"), "{given}: {error}");
        }
    }

    #[test]
    fn each_server_is_given_once_and_named_by_its_url() {
        let config = section(&["http://a/v1", "http://b"]).config().expect("two servers");
        let ids: Vec<_> = config.targets.iter().map(|target| target.id.as_str()).collect();
        assert_eq!(ids, ["http://a", "http://b"]);
        assert!(refused(&section(&[])).contains("no server is given"));
        assert!(refused(&section(&["http://a:80", "http://A/v1/"])).contains("http://a is given twice"));
        let named = |urls| AttachSection { id: Some("vllm".to_owned()), ..section(urls) };
        assert_eq!(named(&["http://a"]).config().expect("one server").targets[0].id.as_str(), "vllm");
        assert!(refused(&named(&["http://a", "http://b"])).contains("2 are given"));
    }

    #[test]
    fn what_cannot_be_offered_is_refused() {
        let usual = || section(&["http://a"]);
        for speed in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(refused(&AttachSection { speed: Some(speed), ..usual() }).contains("above 0"), "{speed}");
        }
        let models = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        assert!(refused(&AttachSection { model: models(&["a", "a"]), ..usual() }).contains("`a` is given twice"));
        assert!(refused(&AttachSection { model: models(&[""]), ..usual() }).contains("is empty"));
        assert!(refused(&AttachSection { waiting: Some(1), ..usual() }).contains("--running"));
        assert!(refused(&AttachSection { probe: Some(Span::seconds(0)), ..usual() }).contains("probe is 0"));
        let grpc = AttachSection { transport: Some(Transport::Grpc), ..usual() };
        assert!(refused(&grpc).contains("--model"));
        AttachSection { model: models(&["a"]), ..grpc }.config().expect("its model is named");
    }

    #[test]
    fn room_is_what_runs_and_what_waits() {
        let section = AttachSection { running: NonZeroU32::new(8), ..section(&["http://a"]) };
        let capacity = |section: &AttachSection| section.config().expect("it is right").offer.capacity;
        assert_eq!(capacity(&section), Some(Capacity { running: 8, waiting: 0 }));
        let section = AttachSection { waiting: Some(4), ..section };
        assert_eq!(capacity(&section), Some(Capacity { running: 8, waiting: 4 }));
    }
}
