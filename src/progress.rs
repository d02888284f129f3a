//! Progress bars while models load.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use muster_worker::config::{LoadObserver, LoadProgress};

/// One bar for each model that loads. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    bars: MultiProgress,
    models: Arc<Mutex<Models>>,
}

#[derive(Debug, Default)]
struct Models {
    bars: BTreeMap<String, ProgressBar>,
    failures: BTreeMap<String, String>,
}

impl Progress {
    /// `draw`: whether bars are shown, on standard error.
    pub(crate) fn new(draw: bool) -> Self {
        let target = if draw { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), models: Arc::default() }
    }

    /// What the worker tells.
    pub(crate) fn observer(&self) -> LoadObserver {
        let progress = self.clone();
        LoadObserver(Arc::new(move |model, event| progress.note(model, event)))
    }

    /// Models that could not be loaded, with the reasons.
    pub(crate) fn failures(&self) -> BTreeMap<String, String> {
        self.models().failures.clone()
    }

    /// A line on standard error that leaves the bars whole.
    pub(crate) fn tell(&self, line: &str) {
        self.bars.suspend(|| eprintln!("{line}"));
    }

    /// Takes the bars away.
    pub(crate) fn finish(&self) {
        for bar in self.models().bars.values() {
            bar.finish_and_clear();
        }
    }

    fn note(&self, model: &str, event: LoadProgress) {
        let mut models = self.models();
        let bar = models.bars.entry(model.to_owned()).or_insert_with(|| self.bars.add(bar(model)));
        match event {
            LoadProgress::Step { step, done, of } => {
                bar.set_length(u64::from(of));
                bar.set_position(u64::from(done));
                bar.set_message(step);
            }
            LoadProgress::Download { done, of } => {
                bar.set_length(of);
                bar.set_position(done);
                bar.set_message(format!("downloading, {} of {}", BinaryBytes(done), BinaryBytes(of)));
            }
            LoadProgress::Ready => bar.finish_with_message("ready"),
            LoadProgress::Failed(reason) => {
                bar.abandon_with_message("failed");
                models.failures.insert(model.to_owned(), reason);
            }
        }
    }

    fn models(&self) -> MutexGuard<'_, Models> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bar(model: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:24}] {msg} ({elapsed})").expect("the template is right");
    let bar = ProgressBar::new(1).with_style(style).with_prefix(model.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
