//! Whether a worker's machine is so short of processors or memory that it is spared. Pure.
//!
//! A mark is crossed upwards at one height and downwards at another, lower one, so that a worker at the mark does not
//! come and go with every heartbeat.

use muster_shared::control::{Heartbeat, Resources};
use muster_shared::problem::Problem;

use crate::config::{Mark, PressureConfig};

/// A mark that is crossed.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Crossed {
    /// What was told last.
    value: f64,
    mark: Mark,
}

/// What presses on a worker's machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Pressure {
    cpu: Option<Crossed>,
    memory: Option<Crossed>,
}

impl Pressure {
    /// Takes what a heartbeat tells.
    ///
    /// A worker that tells nothing of a resource, or no more, is not spared for it: nothing follows from silence, and a
    /// pause that nobody could end would be worse than one that ends early.
    pub(crate) fn take(&mut self, resources: Option<&Resources>, config: &PressureConfig) {
        let none = Resources::default();
        let resources = resources.unwrap_or(&none);
        // A worker that computes on processors takes all there are whenever it works, which is what it is for. What
        // others take of them is what slows it down.
        let cpu = resources.cpu.map(|cpu| cpu - resources.model_cpu.unwrap_or(0.0));
        self.cpu = next(self.cpu, cpu, config.cpu);
        self.memory = next(self.memory, resources.memory, config.memory);
    }

    /// Whether the worker is spared while others are not.
    pub(crate) fn is_paused(&self) -> bool {
        self.cpu.is_some() || self.memory.is_some()
    }

    /// Whether it shall hand over what waits in it: memory that is short gets shorter, processors only slower.
    pub(crate) fn sheds(&self) -> bool {
        self.memory.is_some()
    }

    /// Why it is spared, in words.
    pub(crate) fn reason(&self) -> Option<String> {
        let cpu = self.cpu.map(|crossed| crossed.words("processors taken by others"));
        let memory = self.memory.map(|crossed| crossed.words("memory"));
        let words: Vec<String> = memory.into_iter().chain(cpu).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}

fn next(crossed: Option<Crossed>, value: Option<f64>, mark: Option<Mark>) -> Option<Crossed> {
    let (value, mark) = (value?, mark?);
    let is_crossed = if crossed.is_some() { value >= mark.resume() } else { value > mark.pause() };
    is_crossed.then_some(Crossed { value, mark })
}

impl Crossed {
    fn words(self, what: &str) -> String {
        let Self { value, mark } = self;
        let (now, pause, resume) = (percent(value), percent(mark.pause()), percent(mark.resume()));
        if value > mark.pause() {
            format!("{what} {now} is above {pause}, resumes below {resume}")
        } else {
            format!("{what} {now} was above {pause}, resumes below {resume}")
        }
    }
}

fn percent(fraction: f64) -> String {
    let text = format!("{:.1}", fraction * 100.0);
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

/// Refuses a heartbeat that tells what cannot be.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`] with the field at fault.
pub(crate) fn check_measures(beat: &Heartbeat) -> Result<(), Problem> {
    if let Some(resources) = &beat.resources {
        check_resources(resources)?;
    }
    for (param, value) in [("tokens_per_second", beat.tokens_per_second), ("ttft_ms", beat.ttft_ms)] {
        if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
            return Err(Problem::invalid(param, format!("{param} is {value}; it must be a number from 0 on")));
        }
    }
    Ok(())
}

/// Refuses fractions that are none.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`] with the field at fault.
pub(crate) fn check_resources(resources: &Resources) -> Result<(), Problem> {
    let mut told = resources.fractions().into_iter().filter_map(|(name, value)| Some((name, value?)));
    match told.find(|(_, value)| !(0.0..=1.0).contains(value)) {
        None => Ok(()),
        Some((name, value)) => {
            let message = format!("the resource {name} is {value}; it must be a fraction from 0 to 1");
            Err(Problem::invalid(format!("resources.{name}"), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::id::WorkerId;
    use muster_shared::problem::Kind;
    use proptest::prelude::*;

    use super::*;

    fn memory(memory: f64) -> Resources {
        Resources { memory: Some(memory), ..Resources::default() }
    }

    fn cpu(cpu: f64, model_cpu: Option<f64>) -> Resources {
        Resources { cpu: Some(cpu), model_cpu, ..Resources::default() }
    }

    /// What follows from heartbeats one after another.
    fn paused_after_each(beats: impl IntoIterator<Item = Option<Resources>>, config: &PressureConfig) -> Vec<bool> {
        let mut pressure = Pressure::default();
        let pause = |beat: Option<Resources>| {
            pressure.take(beat.as_ref(), config);
            pressure.is_paused()
        };
        beats.into_iter().map(pause).collect()
    }

    #[test]
    fn a_pause_begins_above_one_mark_and_ends_below_the_other() {
        let usual = PressureConfig::default();
        let beats = [0.5, 0.90, 0.91, 0.89, 0.85, 0.90, 0.84, 0.89, 0.90, 1.0].map(|value| Some(memory(value)));
        let right = [false, false, true, true, true, true, false, false, false, true];
        assert_eq!(paused_after_each(beats, &usual), right);
        let beats = [0.5, 0.85, 0.86, 0.80, 0.75, 0.74, 0.85].map(|value| Some(cpu(value, None)));
        assert_eq!(paused_after_each(beats, &usual), [false, false, true, true, true, false, false]);
    }

    #[test]
    fn more_use_is_more_pressure_and_what_the_models_compute_is_none() {
        let usual = PressureConfig::default();
        let beats = [cpu(1.0, Some(1.0)), cpu(1.0, Some(0.14)), cpu(1.0, Some(0.5)), cpu(0.0, None), cpu(1.0, None)];
        assert_eq!(paused_after_each(beats.map(Some), &usual), [false, true, false, false, true]);
        let busy = Resources { network: Some(1.0), gpu: Some(1.0), gpu_memory: Some(1.0), ..Resources::default() };
        let busy = Resources { kv_cache: Some(1.0), ..busy };
        assert_eq!(paused_after_each([Some(busy)], &usual), [false], "nothing else pauses");
    }

    #[test]
    fn a_worker_that_falls_silent_about_itself_is_not_spared() {
        let usual = PressureConfig::default();
        assert_eq!(paused_after_each([Some(memory(0.95)), None, Some(memory(0.89))], &usual), [true, false, false]);
        assert_eq!(paused_after_each([Some(memory(0.95)), Some(cpu(0.1, None))], &usual), [true, false]);
    }

    #[test]
    fn either_mark_may_be_switched_off() {
        let both = Resources { cpu: Some(1.0), ..memory(1.0) };
        let usual = PressureConfig::default();
        for (config, paused, sheds) in [
            (usual, true, true),
            (PressureConfig { cpu: None, ..usual }, true, true),
            (PressureConfig { memory: None, ..usual }, true, false),
            (PressureConfig { cpu: None, memory: None }, false, false),
        ] {
            let mut pressure = Pressure::default();
            pressure.take(Some(&both), &config);
            assert_eq!((pressure.is_paused(), pressure.sheds()), (paused, sheds), "{config:?}");
            assert_eq!(pressure.reason().is_some(), paused);
        }
    }

    #[test]
    fn a_pause_says_why_in_numbers() {
        let mut pressure = Pressure::default();
        assert_eq!(pressure.reason(), None);
        pressure.take(Some(&memory(0.93)), &PressureConfig::default());
        assert_eq!(pressure.reason().as_deref(), Some("memory 93 % is above 90 %, resumes below 85 %"));
        let both = Resources { memory: Some(0.875), ..cpu(0.97, Some(0.1)) };
        pressure.take(Some(&both), &PressureConfig::default());
        let words = "memory 87.5 % was above 90 %, resumes below 85 %; \
                     processors taken by others 87 % is above 85 %, resumes below 75 %";
        assert_eq!(pressure.reason().as_deref(), Some(words));
    }

    #[test]
    fn what_is_no_fraction_is_refused_by_its_name() {
        let fields = ["cpu", "model_cpu", "memory", "network", "gpu", "gpu_memory", "kv_cache"];
        for field in fields {
            for bad in ["-0.001", "1.001", "1e308", "-1e308", "93"] {
                let json = format!("{{\"{field}\": {bad}}}");
                let resources: Resources = serde_json::from_str(&json).expect("they are numbers");
                let problem = check_resources(&resources).expect_err(&json);
                assert_eq!((problem.kind, problem.param), (Kind::Invalid, Some(format!("resources.{field}"))));
                assert!(
                    problem.message.contains(field) && problem.message.contains("from 0 to 1"),
                    "{}",
                    problem.message
                );
            }
            for good in ["0", "1", "0.5", "-0.0", "null"] {
                let json = format!("{{\"{field}\": {good}}}");
                check_resources(&serde_json::from_str(&json).expect("they are numbers")).expect(&json);
            }
        }
        for none in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            check_resources(&memory(none)).expect_err("not in JSON, but from whom calls directly");
        }
    }

    #[test]
    fn measures_are_numbers_from_0_on() {
        let beat = || Heartbeat::bare(WorkerId::new("w"), 1);
        check_measures(&beat()).expect("nothing is told");
        check_measures(&Heartbeat { tokens_per_second: Some(0.0), ttft_ms: Some(1e9), ..beat() }).expect("numbers");
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            for (param, beat) in [
                ("tokens_per_second", Heartbeat { tokens_per_second: Some(bad), ..beat() }),
                ("ttft_ms", Heartbeat { ttft_ms: Some(bad), ..beat() }),
            ] {
                assert_eq!(check_measures(&beat).expect_err("no such measure").param.as_deref(), Some(param));
            }
        }
    }

    proptest! {
        #[test]
        fn a_pause_holds_between_the_marks_and_only_there_depends_on_the_past(
            values in proptest::collection::vec(0.0..=1.0, 1..60),
        ) {
            let usual = PressureConfig::default();
            let paused = paused_after_each(values.iter().map(|&value| Some(memory(value))), &usual);
            let mut before = false;
            for (value, paused) in values.into_iter().zip(paused) {
                let right = if value > 0.90 { true } else if value < 0.85 { false } else { before };
                prop_assert_eq!(paused, right);
                before = paused;
            }
        }
    }
}
