//! Dispatch policies beside each other: the same requests, the same fleet, in virtual time.
//!
//! `round_robin` is the yardstick: it runs in every scenario, asked for or not, and each figure stands beside its.

use muster_controller::config::PolicyName;
use muster_controller::simulator::{Figures, Scenario, simulate};
use serde::Serialize;
use tracing::subscriber::{NoSubscriber, with_default};

use super::figures::median;
use super::report::{Record, Report};
use crate::cli::PoliciesArgs;
use crate::services::say;

/// What all others are compared with.
const YARDSTICK: &str = "round_robin";

/// Simulates and prints.
pub(super) fn run(args: &PoliciesArgs) -> anyhow::Result<()> {
    let scenarios = if args.scenario.is_empty() { Scenario::all() } else { &args.scenario };
    for (number, scenario) in scenarios.iter().enumerate() {
        if !args.json {
            say(&format!("{}{scenario}: {}", if number > 0 { "\n" } else { "" }, scenario.about));
        }
        let mut report = Report::new(args.json);
        let yardstick = rounds(args, scenario, YARDSTICK.parse()?)?;
        for policy in policies(args) {
            let of = match policy.as_str() {
                YARDSTICK => yardstick,
                _ => rounds(args, scenario, policy)?,
            };
            report.add(&Line::new(args, scenario, policy, of, &yardstick))?;
        }
    }
    Ok(())
}

/// The yardstick, then those that are asked for.
fn policies(args: &PoliciesArgs) -> Vec<PolicyName> {
    let asked: Vec<_> = if args.policy.is_empty() { PolicyName::all().collect() } else { args.policy.clone() };
    let first = PolicyName::all().filter(|policy| policy.as_str() == YARDSTICK);
    first.chain(asked.into_iter().filter(|policy| policy.as_str() != YARDSTICK)).collect()
}

/// The median of every figure over all rounds.
fn rounds(args: &PoliciesArgs, scenario: &Scenario, policy: PolicyName) -> anyhow::Result<Figures> {
    let seeds = (0..args.rounds.get()).map(|round| args.seed.wrapping_add(u64::from(round)));
    // What the controller would log has happened at no time.
    let run = |seed| with_default(NoSubscriber::default(), || simulate(scenario, policy, args.requests as usize, seed));
    let all: Vec<Figures> = seeds.map(run).collect::<Result<_, _>>()?;
    let middle = |figure: fn(&Figures) -> f64| {
        let mut values: Vec<_> = all.iter().map(figure).collect();
        values.sort_unstable_by(f64::total_cmp);
        median(&values)
    };
    Ok(Figures {
        requests: args.requests as usize,
        mean: middle(|figures| figures.mean),
        p50: middle(|figures| figures.p50),
        p99: middle(|figures| figures.p99),
        wait: middle(|figures| figures.wait),
        utilisation: middle(|figures| figures.utilisation),
        slots: middle(|figures| figures.slots),
        failures: middle(|figures| figures.failures),
        retries: middle(|figures| figures.retries),
        lasted: middle(|figures| figures.lasted),
    })
}

/// A policy in a scenario. Times in seconds, shares in per cent.
#[derive(Debug, Serialize)]
struct Line {
    scenario: &'static str,
    policy: &'static str,
    requests: u64,
    seed: u64,
    rounds: u32,
    mean_seconds: f64,
    p50_seconds: f64,
    p99_seconds: f64,
    wait_seconds: f64,
    utilisation_percent: f64,
    slots_in_use_percent: f64,
    failures_percent: f64,
    retries_percent: f64,
    lasted_seconds: f64,
    /// How many times better than the yardstick.
    mean_better: f64,
    p99_better: f64,
    /// Points more than the yardstick.
    utilisation_more: f64,
}

impl Line {
    fn new(
        args: &PoliciesArgs,
        scenario: &Scenario,
        policy: PolicyName,
        figures: Figures,
        yardstick: &Figures,
    ) -> Self {
        Self {
            scenario: scenario.name,
            policy: policy.as_str(),
            requests: args.requests,
            seed: args.seed,
            rounds: args.rounds.get(),
            mean_seconds: thousandths(figures.mean),
            p50_seconds: thousandths(figures.p50),
            p99_seconds: thousandths(figures.p99),
            wait_seconds: thousandths(figures.wait),
            utilisation_percent: percent(figures.utilisation),
            slots_in_use_percent: percent(figures.slots),
            failures_percent: percent(figures.failures),
            retries_percent: percent(figures.retries),
            lasted_seconds: thousandths(figures.lasted),
            mean_better: thousandths(yardstick.mean / figures.mean),
            p99_better: thousandths(yardstick.p99 / figures.p99),
            utilisation_more: percent(figures.utilisation - yardstick.utilisation),
        }
    }
}

impl Record for Line {
    const KIND: &str = "policy";
    const COLUMNS: &[&str] = &[
        "POLICY                 ",
        "MEAN s",
        "BETTER x",
        "P50 s",
        "P99 s",
        "BETTER x",
        "WAIT s",
        "USED %",
        "MORE",
        "FAILED %",
        "RETRIES %",
    ];

    fn cells(&self) -> Vec<String> {
        let two = |number: f64| format!("{number:.2}");
        let name = format!("{:<width$}", self.policy, width = Self::COLUMNS[0].len());
        vec![
            name,
            two(self.mean_seconds),
            two(self.mean_better),
            two(self.p50_seconds),
            two(self.p99_seconds),
            two(self.p99_better),
            two(self.wait_seconds),
            format!("{:.1}", self.utilisation_percent),
            format!("{:+.1}", self.utilisation_more),
            two(self.failures_percent),
            two(self.retries_percent),
        ]
    }
}

fn thousandths(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// A fraction in per cent, to a hundredth.
fn percent(fraction: f64) -> f64 {
    (fraction * 1e4).round() / 1e2
}
