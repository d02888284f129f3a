//! The controller's section.

use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::Args;
use muster_controller::Config;
use muster_controller::config::{BreakerConfig, LeaseConfig, PolicyName, QueueConfig};
use muster_shared::secret::Secret;
use serde::{Deserialize, Serialize};

use super::{Span, one_secret, or};

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
    /// Time between two heartbeats of a worker.
    #[arg(long, env = "MUSTER_CONTROLLER_HEARTBEAT")]
    pub(crate) heartbeat: Option<Span>,
    /// Heartbeats after which a silent worker is gone.
    #[arg(long, env = "MUSTER_CONTROLLER_MISSED_BEATS")]
    pub(crate) missed_beats: Option<NonZeroU32>,
    /// Silence after which a FastChat worker is gone.
    #[arg(long, env = "FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION")]
    pub(crate) fastchat_expiration: Option<Span>,
    /// Requests that may wait for room on a worker.
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
    /// Token that every service of the fleet shows to the others.
    #[arg(long, env = "MUSTER_FLEET_TOKEN", hide_env_values = true, value_parser = super::SecretParser)]
    pub(crate) fleet_token: Option<Secret>,
    /// File that holds the fleet's token.
    #[arg(long, env = "MUSTER_FLEET_TOKEN_FILE")]
    pub(crate) fleet_token_file: Option<PathBuf>,
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
        or!(self, other; host, port, policy, heartbeat, missed_beats, fastchat_expiration, queue_limit,
            queue_limit_per_model, queue_limit_per_key, queue_wait,
            breaker_failures, breaker_pause, body_limit, drain, insecure; (fleet_token, fleet_token_file))
    }

    /// Everything said.
    pub(crate) fn defaults() -> Self {
        let Config { lease, policy, queue, breaker, body_limit, drain, .. } = Config::default();
        Self {
            host: Some("127.0.0.1".to_owned()),
            port: Some(21001),
            policy: Some(policy.to_string()),
            heartbeat: Some(Span(lease.heartbeat)),
            missed_beats: Some(lease.missed_beats),
            fastchat_expiration: Some(Span(lease.fastchat_expiration)),
            queue_limit: Some(queue.limit),
            queue_limit_per_model: queue.per_model,
            queue_limit_per_key: queue.per_key,
            queue_wait: Some(Span(queue.max_wait)),
            breaker_failures: Some(breaker.failures),
            breaker_pause: Some(Span(breaker.pause)),
            fleet_token: None,
            fleet_token_file: None,
            body_limit: Some(ByteSize(body_limit as u64)),
            drain: Some(Span(drain)),
            insecure: Some(false),
        }
    }

    /// Checks everything, and makes it the controller's configuration.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let usual = Config::default();
        let span = |given: Option<Span>, usual| given.map_or(usual, |Span(duration)| duration);
        let heartbeat = span(self.heartbeat, usual.lease.heartbeat);
        anyhow::ensure!(!heartbeat.is_zero(), "heartbeat is 0; it must be longer");
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
            queue: QueueConfig {
                limit: self.queue_limit.unwrap_or(usual.queue.limit),
                per_model: self.queue_limit_per_model.or(usual.queue.per_model),
                per_key: self.queue_limit_per_key.or(usual.queue.per_key),
                max_wait: span(self.queue_wait, usual.queue.max_wait),
            },
            breaker: BreakerConfig {
                failures: self.breaker_failures.unwrap_or(usual.breaker.failures),
                pause: span(self.breaker_pause, usual.breaker.pause),
            },
            token: one_secret(self.fleet_token.clone(), self.fleet_token_file.as_deref())?,
            body_limit: self.body_limit.map_or(usual.body_limit, |size| size.0 as usize),
            drain: span(self.drain, usual.drain),
        })
    }
}
