//! What the fleet, the requests and their arrival are like.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A fleet and what is asked of it.
///
/// Every number is of a kind that occurs, and none was chosen by what comes of it. All fleets have eight workers, and all
/// open arrivals ask for seven tenths of what the fleet can do at most, but for bursts, which go beyond it.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name in flags.
    pub name: &'static str,
    /// What it is like, in a sentence.
    pub about: &'static str,
    pub(super) machines: &'static [Machine],
    pub(super) arrivals: Arrivals,
    pub(super) beginnings: Option<Beginnings>,
}

/// One worker's machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    /// Tokens per second of one request that runs alone.
    pub(super) pace: f64,
    /// Whether it computes on a GPU.
    pub(super) gpu: bool,
    pub(super) fault: Option<Fault>,
}

/// A worker that breaks answers off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    /// When it begins to.
    pub(super) from: Duration,
    /// Of how many requests, as a fraction. Where in the answer it happens is drawn uniformly.
    pub(super) share: f64,
}

/// When requests come.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arrivals {
    /// One after the other, independently (a Poisson process).
    Steady {
        /// Work asked for, as a fraction of what the fleet can do at most.
        load: f64,
    },
    /// The same, but for a part of each period in which they come faster.
    Bursts {
        /// Between bursts.
        load: f64,
        /// In one.
        peak: f64,
        /// From the beginning of one to that of the next.
        every: Duration,
        /// How long one lasts.
        lasting: Duration,
    },
    /// So many clients, each of which asks again as soon as it has its answer.
    Clients(usize),
}

/// Prompts that begin alike: instructions, documents, conversations that go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beginnings {
    /// How many there are. The chance of each falls with its number as that of words does (Zipf).
    pub(super) count: usize,
    /// What it costs to read one, in tokens of an answer; nothing at a worker that still keeps it.
    pub(super) work: f64,
}

/// A worker on a processor that serves a small language model: 40 tokens a second, as in BENCHMARKS.md.
const USUAL: Machine = Machine { pace: 40.0, gpu: false, fault: None };
/// Work asked for by steady arrivals: a fleet that was bought for its busy hour.
const LOAD: Arrivals = Arrivals::Steady { load: 0.7 };
/// One processor of an old machine does 10 tokens a second; each of the others does so many times more.
const UNEQUAL: [Machine; 8] =
    [unequal(1.0), unequal(2.0), unequal(3.0), unequal(4.0), unequal(5.0), unequal(6.0), unequal(7.0), unequal(8.0)];
/// Six like every other, one that does a tenth, and one that after a minute breaks off three requests in ten.
const ILL: [Machine; 8] = [
    USUAL,
    USUAL,
    USUAL,
    USUAL,
    USUAL,
    USUAL,
    Machine { pace: USUAL.pace / 10.0, ..USUAL },
    Machine { fault: Some(Fault { from: Duration::from_secs(60), share: 0.3 }), ..USUAL },
];

/// The faster half has a GPU.
const fn unequal(times: f64) -> Machine {
    Machine { pace: 10.0 * times, gpu: times > 4.5, fault: None }
}

/// Every scenario there is.
static SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "uniform",
        about: "8 equal workers; requests for 70 % of what they can do, one by one",
        machines: &[USUAL; 8],
        arrivals: LOAD,
        beginnings: None,
    },
    Scenario {
        name: "heterogeneous",
        about: "8 workers of speeds 1 to 8; 64 clients, each asking again when it has its answer",
        machines: &UNEQUAL,
        arrivals: Arrivals::Clients(64),
        beginnings: None,
    },
    Scenario {
        name: "heterogeneous-steady",
        about: "the same workers; requests for 70 % of what they can do, one by one",
        machines: &UNEQUAL,
        arrivals: LOAD,
        beginnings: None,
    },
    Scenario {
        name: "slow-and-failing",
        about: "8 workers, one ten times slower, one that breaks off 30 % of its requests after a minute; 70 %",
        machines: &ILL,
        arrivals: LOAD,
        beginnings: None,
    },
    Scenario {
        name: "bursts",
        about: "8 equal workers; requests for 40 %, and for 160 % in the first ten seconds of each minute",
        machines: &[USUAL; 8],
        arrivals: Arrivals::Bursts {
            load: 0.4,
            peak: 1.6,
            every: Duration::from_secs(60),
            lasting: Duration::from_secs(10),
        },
        beginnings: None,
    },
    Scenario {
        name: "prefixes",
        about: "8 equal workers that keep 16 beginnings each; prompts begin in one of 256 ways; 70 % with none kept",
        machines: &[USUAL; 8],
        arrivals: LOAD,
        beginnings: Some(Beginnings { count: 256, work: 100.0 }),
    },
];

impl Scenario {
    /// Every scenario there is, in the order in which they are listed to users.
    pub fn all() -> &'static [Self] {
        &SCENARIOS
    }
}

/// A scenario's name that is none of the legal ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown scenario `{given}`; expected one of: {}", SCENARIOS.map(|scenario| scenario.name).join(", "))]
pub struct UnknownScenario {
    /// The name as it was given.
    pub given: String,
}

impl FromStr for Scenario {
    type Err = UnknownScenario;

    /// Finds a scenario by its name, in any case.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let found = SCENARIOS.iter().find(|scenario| scenario.name.eq_ignore_ascii_case(given));
        found.copied().ok_or_else(|| UnknownScenario { given: given.to_owned() })
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_found_by_its_name_in_any_case() {
        for scenario in Scenario::all() {
            let found: Scenario = scenario.name.to_uppercase().parse().expect("it is listed");
            assert_eq!(found.name, scenario.name);
        }
    }

    #[test]
    fn an_unknown_scenario_is_refused_with_the_legal_names() {
        let error = "calm".parse::<Scenario>().expect_err("there is none");
        let expected = "unknown scenario `calm`; expected one of: uniform, heterogeneous, heterogeneous-steady, \
                        slow-and-failing, bursts, prefixes";
        assert_eq!(error.to_string(), expected);
    }
}
