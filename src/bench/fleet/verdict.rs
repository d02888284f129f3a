//! What came of it, and what must hold.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use muster_shared::control::{Fleet, WorkerState};
use serde::Serialize;

use super::dispatcher::Dispatched;
use super::member::Member;
use super::watch::Watched;
use crate::bench::process::Usage;
use crate::bench::report::Record;

/// What all of it took place in.
pub(super) struct Setting {
    pub(super) seconds: f64,
    pub(super) heartbeat: Duration,
    /// The controller's, at the beginning and at the end.
    pub(super) usage: Option<(Usage, Usage)>,
}

/// What came of it; durations in seconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verdict {
    workers: usize,
    seconds: f64,
    heartbeat_s: f64,
    lease_s: f64,
    beats: u64,
    /// Beats that had no answer.
    missed_beats: u64,
    /// Longest time from one answered beat of a worker to its next.
    longest_gap_s: f64,
    /// Beats that this process sent when the lease was over: the machine was too busy to tell anything.
    late_beats: u64,
    /// Workers that beat and were called gone, or were not known.
    false_expiries: u64,
    killed: usize,
    /// Hand-outs of workers that had fallen silent.
    silent_hand_outs: usize,
    /// Of these, those surely decided after the lease had ended.
    dead_hand_outs: usize,
    /// From a silent worker's last beat to its latest hand-out.
    latest_hand_out_s: Option<f64>,
    /// From a silent worker's last beat until the controller called it gone, at most.
    gone_after_s: Option<f64>,
    /// Silent workers that were not called gone, though there was time.
    not_gone: usize,
    dispatches: u64,
    dispatches_per_second: f64,
    refused: u64,
    /// Tickets that are counted when every request has ended.
    tickets_left: u32,
    looks: u64,
    failed_calls: u64,
    failure: Option<String>,
    controller_cpu_seconds: Option<f64>,
    /// Of one processor.
    controller_cpu_percent: Option<f64>,
    controller_resident_mib: Option<f64>,
}

impl Verdict {
    pub(super) fn new(
        setting: Setting,
        members: &[Arc<Member>],
        dispatched: &Dispatched,
        watched: &Watched,
        fleet: &Fleet,
    ) -> Self {
        let lease = members.first().map_or(Duration::ZERO, |member| member.lease);
        let mut verdict = Self {
            workers: members.len(),
            seconds: rounded(setting.seconds),
            heartbeat_s: setting.heartbeat.as_secs_f64(),
            lease_s: lease.as_secs_f64(),
            false_expiries: watched.false_expiries,
            dispatches: dispatched.granted,
            dispatches_per_second: rounded(dispatched.granted as f64 / setting.seconds),
            refused: dispatched.refused,
            tickets_left: fleet.workers.iter().map(|worker| worker.tickets).sum(),
            looks: watched.looks,
            failed_calls: dispatched.failed + watched.failed,
            failure: dispatched.failure.clone().or_else(|| watched.failure.clone()),
            ..Self::default()
        };
        verdict.add_beats(members);
        verdict.add_silent(members, dispatched, watched);
        // A silent worker's lease ends a term after its last beat; a look at the fleet comes soon after.
        let time = Duration::from_secs_f64(setting.seconds / 2.0);
        if time > lease + setting.heartbeat * 2 {
            let gone = |member: &Member| {
                let found = fleet.workers.iter().find(|worker| worker.id == member.registration.id);
                found.is_none_or(|worker| worker.state == WorkerState::Gone)
            };
            verdict.not_gone = members.iter().filter(|member| member.is_silent() && !gone(member)).count();
        }
        if let Some((before, after)) = setting.usage {
            let cpu = after.time_since(&before).as_secs_f64();
            verdict.controller_cpu_seconds = Some(rounded(cpu));
            verdict.controller_cpu_percent = Some(rounded(cpu / setting.seconds * 100.0));
            verdict.controller_resident_mib = Some(after.resident_mib);
        }
        verdict
    }

    fn add_beats(&mut self, members: &[Arc<Member>]) {
        for member in members {
            let beats = member.beats();
            self.beats += beats.sent;
            self.missed_beats += beats.failed;
            self.late_beats += beats.too_late;
            self.false_expiries += beats.forgotten;
            self.longest_gap_s = self.longest_gap_s.max(rounded(beats.longest_gap.as_secs_f64()));
            self.failure = self.failure.take().or_else(|| beats.failure.clone());
        }
    }

    fn add_silent(&mut self, members: &[Arc<Member>], dispatched: &Dispatched, watched: &Watched) {
        self.killed = members.iter().filter(|member| member.is_silent()).count();
        self.silent_hand_outs = dispatched.silent.len();
        for &(number, asked) in &dispatched.silent {
            let member = &members[number];
            // Its last beat may have been on its way still.
            let silence = asked.saturating_duration_since(member.beats().last);
            self.dead_hand_outs += usize::from(silence > member.lease);
            self.latest_hand_out_s = longer(self.latest_hand_out_s, silence);
        }
        for member in members {
            let Some(&gone) = watched.gone.get(&member.registration.id) else { continue };
            let after = gone.saturating_duration_since(member.beats().last);
            self.gone_after_s = longer(self.gone_after_s, after);
        }
    }

    /// Whether everything held that must.
    ///
    /// # Errors
    /// With everything that did not.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let mut wrong = Vec::new();
        if self.false_expiries > 0 {
            wrong.push(format!("{} times a worker that beat was called gone or was not known", self.false_expiries));
        }
        if self.dead_hand_outs > 0 {
            let latest = self.latest_hand_out_s.unwrap_or_default();
            wrong.push(format!(
                "{} times a silent worker was handed out after its lease of {} s, the latest {latest} s after its last beat",
                self.dead_hand_outs, self.lease_s
            ));
        }
        if self.not_gone > 0 {
            wrong.push(format!("{} silent workers were not called gone", self.not_gone));
        }
        if self.tickets_left > 0 {
            wrong.push(format!("{} tickets were left when every request had ended", self.tickets_left));
        }
        if self.failed_calls > 0 {
            let first = self.failure.as_deref().unwrap_or_default();
            wrong.push(format!("{} calls of the controller failed; the first: {first}", self.failed_calls));
        }
        if !wrong.is_empty() {
            bail!("{}", wrong.join("; "));
        }
        Ok(())
    }
}

impl Record for Verdict {
    const KIND: &'static str = "fleet";
    const COLUMNS: &'static [&'static str] = &[
        "WORKERS",
        "SECONDS",
        "LEASE s",
        "BEATS",
        "MISSED",
        "LONGEST GAP s",
        "LATE",
        "FALSE EXPIRIES",
        "KILLED",
        "LATEST HAND-OUT s",
        "GONE AFTER s",
        "DISPATCHES/S",
        "REFUSED",
        "TICKETS LEFT",
        "CPU %",
        "RSS MiB",
    ];

    fn cells(&self) -> Vec<String> {
        let shown = |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.2}"));
        vec![
            self.workers.to_string(),
            format!("{:.0}", self.seconds),
            format!("{}", self.lease_s),
            self.beats.to_string(),
            self.missed_beats.to_string(),
            shown(Some(self.longest_gap_s)),
            self.late_beats.to_string(),
            self.false_expiries.to_string(),
            self.killed.to_string(),
            shown(self.latest_hand_out_s),
            shown(self.gone_after_s),
            format!("{:.0}", self.dispatches_per_second),
            self.refused.to_string(),
            self.tickets_left.to_string(),
            shown(self.controller_cpu_percent),
            shown(self.controller_resident_mib),
        ]
    }
}

/// The longer of two, in seconds.
fn longer(one: Option<f64>, other: Duration) -> Option<f64> {
    Some(rounded(other.as_secs_f64().max(one.unwrap_or_default())))
}

/// To a thousandth.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_did_not_hold_is_said() {
        Verdict::default().check().expect("nothing is wrong");
        let wrong = Verdict {
            false_expiries: 2,
            dead_hand_outs: 3,
            latest_hand_out_s: Some(15.5),
            lease_s: 15.0,
            not_gone: 4,
            tickets_left: 5,
            failed_calls: 6,
            failure: Some("no route".to_owned()),
            ..Verdict::default()
        };
        let said = wrong.check().expect_err("much is wrong").to_string();
        for part in ["2 times a worker that beat", "3 times a silent", "15.5 s", "4 silent", "5 tickets", "no route"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
