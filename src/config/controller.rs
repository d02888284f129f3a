//! The controller's section.

use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::Args;
use muster_controller::Config;
use muster_controller::config::{BreakerConfig, LeaseConfig, Mark, PolicyName, PressureConfig, QueueConfig};
use muster_controller::peers::PeersConfig;
use muster_shared::secret::Secret;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::names::{self, Alias, Fallbacks, ModelPolicy};
use super::{Share, Span, TlsSection, one_secret, or};

/// How far below a pause it ends, where nobody says.
const GAP_CPU: f64 = 0.1;
/// The same of memory.
const GAP_MEMORY: f64 = 0.05;

/// Longest name of a site, in characters.
const LONGEST_SITE: usize = 64;
/// Most decisions that a journal may keep.
const MOST_DECISIONS: usize = 1_000_000;

/// What a controller can be told.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ControllerSection {
    /// Interface to listen on.
    #[arg(long, env = "MUSTER_CONTROLLER_HOST")]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, env = "MUSTER_CONTROLLER_PORT")]
    pub(crate) port: Option<u16>,
    /// Rule by which a worker is picked.
    #[arg(long, visible_alias = "dispatch-method", env = "MUSTER_CONTROLLER_POLICY", help = policy_help())]
    #[serde(alias = "dispatch_method")]
    pub(crate) policy: Option<String>,
    /// A name that stands for models by weight, as `chat=old-model:90,new-model:10`; may be given several times.
    ///
    /// Each request goes to one of them, drawn among those that are served. Without a weight: 1. In the variable,
    /// aliases are parted by `;`.
    #[arg(
        long = "alias",
        env = "MUSTER_CONTROLLER_ALIASES",
        value_name = "NAME=MODEL[:WEIGHT],…",
        value_delimiter = ';'
    )]
    #[serde(with = "names::map")]
    pub(crate) aliases: Option<Vec<Alias>>,
    /// Models that take a model's requests while it has no room or no worker, best first, as `big=medium,small`; may be
    /// given several times.
    ///
    /// In the variable, models are parted by `;`.
    #[arg(long = "fallback", env = "MUSTER_CONTROLLER_FALLBACKS", value_name = "MODEL=MODEL,…", value_delimiter = ';')]
    #[serde(with = "names::map")]
    pub(crate) fallbacks: Option<Vec<Fallbacks>>,
    /// Rule by which a worker of that model is picked, in place of --policy; may be given several times.
    ///
    /// In the variable, models are parted by `;`.
    #[arg(
        long = "model-policy",
        env = "MUSTER_CONTROLLER_POLICIES",
        value_name = "MODEL=POLICY",
        value_delimiter = ';'
    )]
    #[serde(with = "names::map")]
    pub(crate) policies: Option<Vec<ModelPolicy>>,
    /// File of workers that do not register: YAML with their ids and addresses (`muster peers check FILE` reads it).
    #[arg(long, env = "MUSTER_CONTROLLER_PEERS", value_name = "FILE")]
    pub(crate) peers: Option<PathBuf>,
    /// Time between two probes of such a worker.
    #[arg(long, env = "MUSTER_CONTROLLER_PROBE_INTERVAL")]
    pub(crate) probe_interval: Option<Span>,
    /// Time between two heartbeats of a worker.
    #[arg(long, env = "MUSTER_CONTROLLER_HEARTBEAT")]
    pub(crate) heartbeat: Option<Span>,
    /// Heartbeats after which a silent worker is gone.
    #[arg(long, env = "MUSTER_CONTROLLER_MISSED_BEATS")]
    pub(crate) missed_beats: Option<NonZeroU32>,
    /// Silence after which a FastChat worker is gone.
    #[arg(long, env = "FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION")]
    pub(crate) fastchat_expiration: Option<Span>,
    /// Requests that may wait for room on a worker; 60000 at most.
    #[arg(long, env = "MUSTER_CONTROLLER_QUEUE_LIMIT")]
    pub(crate) queue_limit: Option<usize>,
    /// Those of them that may wait for one model; any unless said otherwise.
    #[arg(long, env = "MUSTER_CONTROLLER_QUEUE_LIMIT_PER_MODEL")]
    pub(crate) queue_limit_per_model: Option<usize>,
    /// Those of them that may come with one API key, which share the fleet fairly; any unless said otherwise.
    #[arg(long, env = "MUSTER_CONTROLLER_QUEUE_LIMIT_PER_KEY")]
    pub(crate) queue_limit_per_key: Option<usize>,
    /// Longest wait for room on a worker.
    #[arg(long, env = "MUSTER_CONTROLLER_QUEUE_WAIT")]
    pub(crate) queue_wait: Option<Span>,
    /// Failures in a row after which a worker is spared.
    #[arg(long, env = "MUSTER_CONTROLLER_BREAKER_FAILURES")]
    pub(crate) breaker_failures: Option<NonZeroU32>,
    /// Time for which a failing worker is spared first; it doubles up to 30 s.
    #[arg(long, env = "MUSTER_CONTROLLER_BREAKER_PAUSE")]
    pub(crate) breaker_pause: Option<Span>,
    /// Share of its processors that others take from a worker's models, above which it gets nothing while another does
    /// better; `off`: whatever they take.
    #[arg(long, env = "MUSTER_CONTROLLER_PAUSE_CPU", value_name = "SHARE")]
    pub(crate) pause_cpu: Option<Share>,
    /// Share below which it gets requests again; 0.1 below the pause when only that is given.
    #[arg(long, env = "MUSTER_CONTROLLER_RESUME_CPU", value_name = "SHARE")]
    pub(crate) resume_cpu: Option<Share>,
    /// Share of its memory in use, above which a worker gets nothing while another does better, and hands over what waits
    /// in it; `off`: however much it is.
    #[arg(long, env = "MUSTER_CONTROLLER_PAUSE_MEMORY", value_name = "SHARE")]
    pub(crate) pause_memory: Option<Share>,
    /// Share below which it gets requests again; 0.05 below the pause when only that is given.
    #[arg(long, env = "MUSTER_CONTROLLER_RESUME_MEMORY", value_name = "SHARE")]
    pub(crate) resume_memory: Option<Share>,
    /// Last decisions that `muster explain` and `muster journal` can tell of; 0: none.
    #[arg(long, env = "MUSTER_CONTROLLER_JOURNAL", value_name = "DECISIONS")]
    pub(crate) journal: Option<usize>,
    /// Token that every service of the fleet shows to the others.
    #[arg(long, env = "MUSTER_FLEET_TOKEN", hide_env_values = true, value_parser = super::SecretParser)]
    pub(crate) fleet_token: Option<Secret>,
    /// File that holds the fleet's token.
    #[arg(long, env = "MUSTER_FLEET_TOKEN_FILE")]
    pub(crate) fleet_token_file: Option<PathBuf>,
    /// Key with which operators drain and resume workers, and look at the fleet; without, the fleet's token is enough.
    #[arg(long, env = "MUSTER_ADMIN_KEY", hide_env_values = true, value_parser = super::SecretParser)]
    pub(crate) admin_key: Option<Secret>,
    /// File that holds the admin key.
    #[arg(long, env = "MUSTER_ADMIN_KEY_FILE")]
    pub(crate) admin_key_file: Option<PathBuf>,
    /// Files of TLS.
    #[command(flatten)]
    #[serde(skip_serializing_if = "TlsSection::is_empty")]
    pub(crate) tls: TlsSection,
    /// Name of the place where everything is that does not say otherwise; the topology shows it.
    #[arg(long, env = "MUSTER_CONTROLLER_SITE", value_name = "NAME")]
    pub(crate) site: Option<String>,
    /// Longest request body.
    #[arg(long, env = "MUSTER_CONTROLLER_BODY_LIMIT")]
    pub(crate) body_limit: Option<ByteSize>,
    /// Time that running requests get when the controller stops.
    #[arg(long, env = "MUSTER_CONTROLLER_DRAIN")]
    pub(crate) drain: Option<Span>,
    /// Listen on an open interface without a token.
    #[arg(
        long,
        env = "MUSTER_INSECURE",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) insecure: Option<bool>,
}

/// What `--help` says of the flag that names a policy.
pub(crate) fn policy_help() -> String {
    let names: Vec<_> = PolicyName::all().map(PolicyName::as_str).collect();
    format!("Rule by which a worker is picked, in any case: {}", names.join(", "))
}

impl ControllerSection {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; tls, host, port, policy, aliases, fallbacks, policies, peers, probe_interval, heartbeat, missed_beats,
            fastchat_expiration, queue_limit, queue_limit_per_model, queue_limit_per_key, queue_wait,
            breaker_failures, breaker_pause, journal, site, body_limit, drain, insecure; (pause_cpu, resume_cpu),
            (pause_memory, resume_memory), (fleet_token, fleet_token_file),
            (admin_key, admin_key_file))
    }

    /// Everything said.
    pub(crate) fn defaults() -> Self {
        let Config { lease, policy, queue, breaker, pressure, journal, site, body_limit, drain, .. } =
            Config::default();
        let shares = |mark: Option<Mark>| match mark {
            Some(mark) => (Some(Share::Of(mark.pause())), Some(Share::Of(mark.resume()))),
            None => (Some(Share::Off), None),
        };
        let (pause_cpu, resume_cpu) = shares(pressure.cpu);
        let (pause_memory, resume_memory) = shares(pressure.memory);
        Self {
            host: Some("127.0.0.1".to_owned()),
            port: Some(21001),
            policy: Some(policy.to_string()),
            aliases: None,
            fallbacks: None,
            policies: None,
            peers: None,
            probe_interval: Some(Span(PeersConfig::PROBE_INTERVAL)),
            heartbeat: Some(Span(lease.heartbeat)),
            missed_beats: Some(lease.missed_beats),
            fastchat_expiration: Some(Span(lease.fastchat_expiration)),
            queue_limit: Some(queue.limit),
            queue_limit_per_model: queue.per_model,
            queue_limit_per_key: queue.per_key,
            queue_wait: Some(Span(queue.max_wait)),
            breaker_failures: Some(breaker.failures),
            breaker_pause: Some(Span(breaker.pause)),
            pause_cpu,
            resume_cpu,
            pause_memory,
            resume_memory,
            journal: Some(journal),
            fleet_token: None,
            fleet_token_file: None,
            tls: TlsSection::default(),
            admin_key: None,
            admin_key_file: None,
            site: Some(site),
            body_limit: Some(ByteSize(body_limit as u64)),
            drain: Some(Span(drain)),
            insecure: Some(false),
        }
    }

    fn journal_limit(&self, usual: usize) -> anyhow::Result<usize> {
        let limit = self.journal.unwrap_or(usual);
        anyhow::ensure!(
            limit <= MOST_DECISIONS,
            "journal is {limit}; {MOST_DECISIONS} decisions are the most, for they are kept in memory"
        );
        Ok(limit)
    }

    /// Checks everything, and makes it the controller's configuration.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let usual = Config::default();
        let span = |given: Option<Span>, usual| given.map_or(usual, |Span(duration)| duration);
        let heartbeat = span(self.heartbeat, usual.lease.heartbeat);
        anyhow::ensure!(!heartbeat.is_zero(), "heartbeat is 0; it must be longer");
        for (name, limit) in [("model", self.queue_limit_per_model), ("key", self.queue_limit_per_key)] {
            anyhow::ensure!(
                limit != Some(0),
                "queue_limit_per_{name} is 0; take a number above 0, or leave it out for no bound (queue_limit: 0 lets \
                 nobody wait)"
            );
        }
        let queue_limit = self.queue_limit.unwrap_or(usual.queue.limit);
        let most = QueueConfig::MOST;
        anyhow::ensure!(
            queue_limit <= most,
            "queue_limit is {queue_limit}; {most} is the most, for more refusals at once would not reach a gateway"
        );
        Ok(Config {
            lease: LeaseConfig {
                heartbeat,
                missed_beats: self.missed_beats.unwrap_or(usual.lease.missed_beats),
                fastchat_expiration: span(self.fastchat_expiration, usual.lease.fastchat_expiration),
            },
            policy: match &self.policy {
                Some(name) => name.parse().context("policy")?,
                None => usual.policy,
            },
            peers: None, // they are read when it is known where the controller listens
            names: names::checked(&self.aliases, &self.fallbacks, &self.policies)?,
            queue: QueueConfig {
                limit: queue_limit,
                per_model: self.queue_limit_per_model.or(usual.queue.per_model),
                per_key: self.queue_limit_per_key.or(usual.queue.per_key),
                max_wait: span(self.queue_wait, usual.queue.max_wait),
            },
            breaker: BreakerConfig {
                failures: self.breaker_failures.unwrap_or(usual.breaker.failures),
                pause: span(self.breaker_pause, usual.breaker.pause),
            },
            pressure: PressureConfig {
                cpu: mark("cpu", (self.pause_cpu, self.resume_cpu), (usual.pressure.cpu, GAP_CPU))?,
                memory: mark("memory", (self.pause_memory, self.resume_memory), (usual.pressure.memory, GAP_MEMORY))?,
            },
            journal: self.journal_limit(usual.journal)?,
            token: one_secret(self.fleet_token.clone(), self.fleet_token_file.as_deref())?,
            tls: self.tls.load()?,
            admin_key: one_secret(self.admin_key.clone(), self.admin_key_file.as_deref()).context("admin_key")?,
            site: self.site.as_deref().map_or(Ok(usual.site), place)?,
            body_limit: self.body_limit.map_or(usual.body_limit, |size| size.0 as usize),
            drain: span(self.drain, usual.drain),
        })
    }
}

/// Checks the name of a site.
fn place(name: &str) -> anyhow::Result<String> {
    let length = name.chars().count();
    anyhow::ensure!(
        (1..=LONGEST_SITE).contains(&length) && name.trim() == name && !name.contains(char::is_control),
        "site is {name:?}; a name has 1 to {LONGEST_SITE} characters, no control characters, and no blanks at its ends"
    );
    Ok(name.to_owned())
}

impl ControllerSection {
    /// Reads the peers file, if there is one, for a controller that listens there.
    pub(crate) fn peers(&self, listener: &TcpListener) -> anyhow::Result<Option<PeersConfig>> {
        let Some(path) = &self.peers else { return Ok(None) };
        let interval = self.probe_interval.map_or(PeersConfig::PROBE_INTERVAL, |Span(interval)| interval);
        anyhow::ensure!(!interval.is_zero(), "probe_interval is 0; it must be longer");
        Ok(Some(PeersConfig::load(path.clone(), listener.local_addr()?, interval)?))
    }
}

/// The mark at which workers are spared for a resource: where the pause begins and ends as given, else as usual.
fn mark(
    resource: &str,
    (pause, resume): (Option<Share>, Option<Share>),
    (usual, gap): (Option<Mark>, f64),
) -> anyhow::Result<Option<Mark>> {
    let Some(pause) = pause.map_or(usual.map(Mark::pause), Share::fraction) else { return Ok(None) };
    let resume = match resume {
        None => (pause - gap).max(pause / 2.0),
        Some(Share::Of(resume)) => resume,
        Some(Share::Off) => anyhow::bail!("resume_{resource} is `off`; to have no pause, switch pause_{resource} off"),
    };
    anyhow::ensure!(
        resume < pause,
        "resume_{resource} is {resume} and pause_{resource} is {pause}; a pause must end below where it begins"
    );
    Ok(Some(Mark::new(pause, resume).with_context(|| format!("pause_{resource}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The marks that follow from flags, before and after the defaults are put in.
    fn marks(flags: ControllerSection) -> anyhow::Result<PressureConfig> {
        let alone = flags.clone().config().map(|config| config.pressure);
        let whole = flags.or(ControllerSection::defaults()).config().map(|config| config.pressure);
        match (&alone, &whole) {
            (Ok(alone), Ok(whole)) => assert_eq!(alone, whole),
            (alone, whole) => assert!(alone.is_err() && whole.is_err()),
        }
        whole
    }

    #[test]
    fn a_pause_ends_where_it_is_said_or_somewhat_below() {
        let usual = PressureConfig::default();
        let mark = |pause, resume| Some(Mark::new(pause, resume).expect("a mark"));
        assert_eq!(marks(ControllerSection::default()).expect("the defaults"), usual);
        for (pause, resume, cpu) in [
            (Some(Share::Of(0.5)), None, mark(0.5, 0.4)),
            (Some(Share::Of(0.1)), None, mark(0.1, 0.05)),
            (Some(Share::Of(0.5)), Some(Share::Of(0.1)), mark(0.5, 0.1)),
            (None, Some(Share::Of(0.8)), mark(0.85, 0.8)),
            (Some(Share::Off), None, None),
            (Some(Share::Off), Some(Share::Of(0.8)), None),
        ] {
            let flags = ControllerSection { pause_cpu: pause, resume_cpu: resume, ..ControllerSection::default() };
            assert_eq!(marks(flags).expect("fine"), PressureConfig { cpu, ..usual });
        }
        let flags = ControllerSection { pause_memory: Some(Share::Of(0.95)), ..ControllerSection::default() };
        let memory = marks(flags).expect("fine").memory.expect("a mark");
        assert!((memory.pause() - 0.95).abs() + (memory.resume() - 0.9).abs() < 1e-9, "{memory:?}");
    }

    #[test]
    fn a_site_has_a_name_that_can_be_shown() {
        let site =
            |name: &str| ControllerSection { site: Some(name.to_owned()), ..ControllerSection::default() }.config();
        assert_eq!(site("Fabrik Süd").expect("fine").site, "Fabrik Süd");
        for name in ["", " ", "a ", "a\nb", "\u{1b}[2J", &"a".repeat(65)] {
            let error = site(name).expect_err("no name").to_string();
            assert!(error.starts_with(&format!("site is {name:?}; a name has 1 to 64 characters")), "{error}");
        }
    }

    #[test]
    fn a_queue_longer_than_a_link_takes_answers_for_is_refused() {
        let limit = |limit| ControllerSection { queue_limit: Some(limit), ..ControllerSection::default() }.config();
        for most in [0, 60_000] {
            assert_eq!(limit(most).expect("fine").queue.limit, most);
        }
        for more in [60_001, usize::MAX] {
            let error = limit(more).expect_err("too long").to_string();
            assert!(error.starts_with(&format!("queue_limit is {more}; 60000 is the most")), "{error}");
        }
    }

    #[test]
    fn a_pause_that_cannot_end_is_refused_with_both_numbers() {
        for (pause, resume, parts) in [
            (Some(Share::Of(0.7)), Share::Of(0.8), ["resume_memory is 0.8", "pause_memory is 0.7"]),
            (Some(Share::Of(0.7)), Share::Of(0.7), ["resume_memory is 0.7", "pause_memory is 0.7"]),
            (None, Share::Of(0.95), ["resume_memory is 0.95", "pause_memory is 0.9"]),
            (None, Share::Off, ["resume_memory is `off`", "pause_memory off"]),
        ] {
            let flags =
                ControllerSection { pause_memory: pause, resume_memory: Some(resume), ..ControllerSection::default() };
            let error = marks(flags).expect_err("it never ends").to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
