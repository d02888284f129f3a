//! The tensor models of a worker: loading, exchanging and unloading them while requests run.
//!
//! A version is replaced as a whole: the new one is loaded and warmed up beside the old one, takes its place at once,
//! and the old one goes when the last request that has it has ended. No request waits for that, and none is lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use muster_shared::control::{Capacity, ModelCard, ModelKind, ModelLoad};
use muster_shared::problem::{Kind, Problem, chain};
use muster_shared::tensor::config::ModelConfig;
use muster_shared::tensor::{IndexEntry, InferRequest, InferResponse, ModelMetadata, ModelState, ModelStatistics};
use tokio::sync::watch;

use super::layout::{self, Found, Stamp};
use super::version::Version;
use crate::config::{Config, ModelControl, RepositoryConfig};
use crate::metrics;
use crate::model::onnx::words::without_paths;

mod entry;

use entry::Entry;

/// The tensor models of a worker.
#[derive(Debug)]
pub struct Tensors {
    config: Config,
    models: RwLock<BTreeMap<String, Entry>>,
    /// One for each model that was ever loaded: two loads of one model come one after the other.
    turns: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Threads of versions, those that have ended already among them.
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Counts changes of what can be asked.
    changes: watch::Sender<u64>,
}

impl Default for Tensors {
    fn default() -> Self {
        Self::new(&Config::default())
    }
}

impl Tensors {
    /// No models yet.
    pub fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            models: RwLock::default(),
            turns: Mutex::default(),
            threads: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Loads the models with which the worker starts. Those that cannot be loaded are in the index with the reason.
    pub fn start(&self) {
        let Some(repository) = &self.config.repository else { return };
        for name in self.first_models(repository) {
            // The reason is in the log and in the index.
            let _ = self.load_found(&name, || layout::folder(&repository.folder, &name));
        }
    }

    fn first_models(&self, repository: &RepositoryConfig) -> Vec<String> {
        let all = || {
            layout::models(&repository.folder).unwrap_or_else(|reason| {
                tracing::error!(reason, "the model repository cannot be read");
                Vec::new()
            })
        };
        match repository.control {
            ModelControl::None | ModelControl::Poll => all(),
            ModelControl::Explicit if repository.load.iter().any(|name| name == "*") => all(),
            ModelControl::Explicit => repository.load.clone(),
        }
    }

    /// Serves a model that is no part of the repository, and stays for as long as the worker runs.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn add_fixed(&self, found: Found) -> Result<(), crate::error::LoadError> {
        for warning in &found.settings.warnings {
            tracing::warn!(model = found.name, "config.pbtxt: {warning}");
        }
        let load = |&number| Version::load(&self.config, &found, number).map(|loaded| (number, loaded));
        let loaded = found.versions.keys().map(load).collect::<Result<Vec<_>, _>>()?;
        self.write(|models| {
            let entry = models.entry(found.name.clone()).or_default();
            entry.fixed = true;
            for (number, (version, threads)) in loaded {
                self.keep_threads(threads);
                entry.install(number, Arc::new(version));
            }
        });
        Ok(())
    }

    /// Loads a model of the repository, or loads it anew. Blocks for as long as ONNX Runtime takes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when models are not controlled explicitly, or the model cannot be loaded; what was served
    /// before is served on.
    pub fn load(&self, name: &str) -> Result<(), Problem> {
        let repository = self.explicit("load")?;
        let folder = || layout::folder(&repository.folder, name);
        self.load_found(name, folder)
            .map_err(|reason| Problem::invalid("model", format!("failed to load `{name}`: {reason}")))
    }

    /// Takes a model away; requests that run end on it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when models are not controlled explicitly, [`Kind::UnknownModel`] when it is not loaded.
    pub fn unload(&self, name: &str) -> Result<(), Problem> {
        self.explicit("unload")?;
        let turn = self.turn(name);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = self.read(|models| models.get(name).is_some_and(|entry| !entry.versions.is_empty()));
        if !is_there {
            return Err(self.unknown(name));
        }
        self.write(|models| {
            if let Some(entry) = models.get_mut(name) {
                entry.unload("unloaded");
            }
        });
        tracing::info!(model = name, "model is unloaded");
        Ok(())
    }

    /// The repository, if clients may load and unload.
    fn explicit(&self, what: &str) -> Result<&RepositoryConfig, Problem> {
        let reason = match &self.config.repository {
            Some(repository) if repository.control == ModelControl::Explicit => return Ok(repository),
            Some(repository) => format!("models are controlled by mode `{}`", repository.control.name()),
            None => "this worker has no model repository".to_owned(),
        };
        let advice = "explicit model control is not enabled: start the worker with --model-repository DIR and \
                      --model-control-mode explicit";
        Err(Problem::new(Kind::Invalid, format!("cannot {what} a model: {reason}; {advice}")))
    }

    /// Looks at the repository: loads what is new or has changed, and unloads what has gone. Blocks.
    pub fn poll(&self) {
        let Some(repository) = &self.config.repository else { return };
        let there = match layout::models(&repository.folder) {
            Ok(there) => there,
            Err(reason) => return tracing::error!(reason, "the model repository cannot be read"),
        };
        let known: Vec<String> =
            self.read(|models| models.iter().filter(|(_, entry)| !entry.fixed).map(|(name, _)| name.clone()).collect());
        for name in known.iter().filter(|name| !there.contains(name)) {
            tracing::info!(model = name, "model has gone from the repository");
            self.write(|models| {
                if let Some(mut entry) = models.remove(name) {
                    entry.unload("gone from the repository");
                }
            });
        }
        for name in there {
            if self.has_changed(&repository.folder, &name) {
                // The reason is in the log and in the index.
                let _ = self.load_found(&name, || layout::folder(&repository.folder, &name));
            }
        }
    }

    /// Whether a model is not as it was when it was loaded, or could not be.
    fn has_changed(&self, repository: &Path, name: &str) -> bool {
        let seen = layout::read(name, &repository.join(name)).map(|found| stamps(&found));
        self.read(|models| match models.get(name) {
            Some(entry) => entry.seen.as_ref() != Some(&seen),
            None => true,
        })
    }

    /// Loads the versions of a model that its policy serves, and puts them in the place of the old ones.
    fn load_found(&self, name: &str, folder: impl Fn() -> Result<std::path::PathBuf, String>) -> Result<(), String> {
        let turn = self.turn(name);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = folder().and_then(|folder| {
            let seen = layout::read(name, &folder);
            self.note_seen(name, seen.as_ref().map(stamps).map_err(String::clone))?;
            self.exchange(&seen?)
        });
        let outcome = outcome.map_err(|reason| self.without_folder(&reason));
        self.write_quietly(|models| {
            if let Some(entry) = models.get_mut(name) {
                entry.loading = false;
                if let Err(reason) = &outcome {
                    entry.reason.clone_from(reason);
                }
            }
        });
        match &outcome {
            Ok(()) => tracing::info!(model = name, "model is ready"),
            Err(reason) => tracing::error!(model = name, reason, "model cannot be loaded"),
        }
        outcome
    }

    fn note_seen(&self, name: &str, seen: Result<BTreeMap<u64, Stamp>, String>) -> Result<(), String> {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        let entry = models.entry(name.to_owned()).or_default();
        if entry.fixed {
            return Err(format!("`{name}` is served from outside of the repository; give one of the two another name"));
        }
        entry.seen = Some(seen);
        entry.loading = true;
        entry.failures.clear(); // of an earlier attempt
        Ok(())
    }

    /// Every version that can be loaded takes its place; of one that cannot, the old one stays.
    fn exchange(&self, found: &Found) -> Result<(), String> {
        let mut loaded = Vec::new();
        let mut failures: BTreeMap<u64, String> = BTreeMap::new();
        for &number in found.versions.keys() {
            match Version::load(&self.config, found, number) {
                Ok((version, threads)) => {
                    metrics::tensor_load("loaded");
                    self.keep_threads(threads);
                    loaded.push((number, Arc::new(version)));
                }
                Err(error) => {
                    metrics::tensor_load("failed");
                    failures.insert(number, self.without_folder(&chain(&error)));
                }
            }
        }
        for warning in &found.settings.warnings {
            tracing::warn!(model = found.name, "config.pbtxt: {warning}");
        }
        let wanted: BTreeSet<u64> = found.versions.keys().copied().collect();
        let reason = failures.iter().next().map(|(number, reason)| format!("version {number}: {reason}"));
        self.write(|models| {
            let entry = models.entry(found.name.clone()).or_default();
            if failures.is_empty() {
                entry.retire(|number| !wanted.contains(&number));
            }
            loaded.into_iter().for_each(|(number, version)| entry.install(number, version));
            entry.failures = failures;
            entry.reason.clear();
        });
        reason.map_or(Ok(()), Err)
    }

    /// A reason, without what an operator's machine looks like.
    fn without_folder(&self, reason: &str) -> String {
        let folder = self.config.repository.as_ref().map(|repository| format!("{}/", repository.folder.display()));
        without_paths(&folder.map_or(reason.to_owned(), |folder| reason.replace(&folder, "")))
    }

    fn turn(&self, name: &str) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1); // nobody else has them
        Arc::clone(turns.entry(name.to_owned()).or_default())
    }

    fn keep_threads(&self, new: Vec<JoinHandle<()>>) {
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.extend(new);
    }

    fn read<T>(&self, work: impl FnOnce(&BTreeMap<String, Entry>) -> T) -> T {
        work(&self.models.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what can be asked, and tells whoever wants to know.
    fn write(&self, work: impl FnOnce(&mut BTreeMap<String, Entry>)) {
        self.write_quietly(work);
        metrics::tensor_versions(self.read(|models| models.values().map(|entry| entry.versions.len()).sum()));
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn write_quietly(&self, work: impl FnOnce(&mut BTreeMap<String, Entry>)) {
        work(&mut self.models.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts changes of what can be asked.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A version of a model, or the newest one.
    ///
    /// # Errors
    /// [`Kind::UnknownModel`], naming those that there are.
    pub fn version(&self, name: &str, number: Option<&str>) -> Result<Arc<Version>, Problem> {
        let number = number.filter(|number| !number.is_empty());
        let found = self.read(|models| {
            let entry = models.get(name).filter(|entry| !entry.versions.is_empty())?;
            let version = match number {
                None => entry.versions.values().next_back(),
                Some(number) => number.parse::<u64>().ok().and_then(|number| entry.versions.get(&number)),
            };
            Some(version.map(Arc::clone).ok_or_else(|| entry.numbers().join(", ")))
        });
        match found {
            Some(Ok(version)) => Ok(version),
            Some(Err(there)) => {
                let number = number.unwrap_or_default();
                let message = format!("model `{name}` has no version `{number}` that is ready; it has {there}");
                Err(Problem::new(Kind::UnknownModel, message).with_param("version"))
            }
            None => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Problem {
        let (reason, there) = self.read(|models| {
            let ready = models.iter().filter(|(_, entry)| !entry.versions.is_empty()).map(|(name, _)| name.clone());
            (models.get(name).map(|entry| entry.reason.clone()).unwrap_or_default(), ready.collect::<Vec<_>>())
        });
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        let message = format!("no tensor model `{name}` is ready{reason}; ready are: {there}");
        Problem::new(Kind::UnknownModel, message).with_param("model")
    }

    /// Whether nothing is served, and nothing could come.
    pub fn is_empty(&self) -> bool {
        let control = self.config.repository.as_ref().map(|repository| repository.control);
        let may_come = control.is_some_and(|control| control != ModelControl::None);
        !may_come && self.versions().is_empty()
    }

    /// Why models are not served that should be.
    pub fn failures(&self) -> Vec<(String, String)> {
        self.read(|models| {
            let failed = models.iter().filter(|(_, entry)| entry.versions.is_empty());
            failed.map(|(name, entry)| (name.clone(), entry.reason.clone())).collect()
        })
    }

    /// Whether a model of that name can be asked.
    pub fn has(&self, name: &str) -> bool {
        self.read(|models| models.get(name).is_some_and(|entry| !entry.versions.is_empty()))
    }

    /// Runs a request.
    ///
    /// # Errors
    /// As [`Tensors::version`] and [`Version::infer`].
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, Problem> {
        let version = self.version(&request.model, request.version.as_deref())?;
        version.infer(request).await
    }

    /// What a model takes and gives.
    ///
    /// # Errors
    /// As [`Tensors::version`].
    pub fn metadata(&self, name: &str, number: Option<&str>) -> Result<ModelMetadata, Problem> {
        let version = self.version(name, number)?;
        let versions = self.read(|models| models.get(name).map(Entry::numbers).unwrap_or_default());
        Ok(ModelMetadata {
            name: version.model.clone(),
            versions,
            platform: version.config.platform.clone(),
            inputs: version.inputs(),
            outputs: version.outputs(),
        })
    }

    /// A model's settings.
    ///
    /// # Errors
    /// As [`Tensors::version`].
    pub fn config(&self, name: &str, number: Option<&str>) -> Result<ModelConfig, Problem> {
        Ok(self.version(name, number)?.config.clone())
    }

    /// What runs have cost: of a version, of all versions of a model, or of everything.
    ///
    /// # Errors
    /// As [`Tensors::version`].
    pub fn statistics(&self, name: Option<&str>, number: Option<&str>) -> Result<Vec<ModelStatistics>, Problem> {
        let versions = match (name.filter(|name| !name.is_empty()), number.filter(|number| !number.is_empty())) {
            (Some(name), Some(number)) => vec![self.version(name, Some(number))?],
            (Some(name), None) => {
                self.version(name, None)?;
                self.versions().into_iter().filter(|version| version.model == name).collect()
            }
            (None, _) => self.versions(),
        };
        Ok(versions.iter().map(|version| version.statistics()).collect())
    }

    /// Every model that is known: loaded, being loaded, going, or there to be loaded.
    pub fn index(&self, only_ready: bool) -> Vec<IndexEntry> {
        let mut entries =
            self.read(|models| models.iter().flat_map(|(name, entry)| entry.index(name)).collect::<Vec<IndexEntry>>());
        if let Some(repository) = &self.config.repository {
            let known: BTreeSet<String> = entries.iter().map(|entry| entry.name.clone()).collect();
            let there = layout::models(&repository.folder).unwrap_or_default();
            let others = there.into_iter().filter(|name| !known.contains(name));
            entries.extend(others.map(|name| entry::unavailable(&name, "", "")));
        }
        entries.retain(|entry| !only_ready || entry.state == ModelState::Ready);
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    fn versions(&self) -> Vec<Arc<Version>> {
        self.read(|models| {
            let loaded = models.values().flat_map(|entry| entry.versions.values());
            loaded.map(Arc::clone).collect()
        })
    }

    /// What the controller is told: one card for each model that can be asked.
    pub fn cards(&self) -> Vec<ModelCard> {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let card = |(name, instances): (String, usize)| ModelCard {
            kind: Some(ModelKind::Tensor),
            capacity: Some(Capacity { running: count(instances), waiting: count(self.config.tensor_requests.get()) }),
            ..ModelCard::bare(name)
        };
        let models = self.read(|models| {
            let newest = models.iter().filter_map(|(name, entry)| Some((name, entry.versions.values().next_back()?)));
            newest.map(|(name, loaded)| (name.clone(), loaded.room())).collect::<Vec<_>>()
        });
        models.into_iter().map(card).collect()
    }

    /// What the models do at the moment; only those that do anything.
    pub fn load_report(&self) -> Vec<ModelLoad> {
        let mut report: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let loaded = self.versions();
        let going: Vec<Arc<Version>> = self.read(|models| models.values().flat_map(Entry::retiring).collect());
        for version in loaded.iter().chain(&going) {
            let (running, waiting) = version.batcher.load();
            let sum = report.entry(version.model.clone()).or_default();
            *sum = (sum.0 + running, sum.1 + waiting);
        }
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let busy = report.into_iter().filter(|(_, (running, waiting))| running + waiting > 0);
        busy.map(|(model, (running, waiting))| ModelLoad { model, running: count(running), waiting: count(waiting) })
            .collect()
    }

    /// Refuses the requests that wait; see [`crate::tensor::batcher::Batcher::shed`].
    pub fn shed(&self) {
        self.versions().iter().for_each(|version| version.batcher.shed());
    }

    /// Whether the threads of every version run.
    pub fn is_alive(&self) -> bool {
        self.versions().iter().all(|version| version.batcher.is_alive())
    }

    /// Resolves when the thread of a version has died; gives the model's name.
    pub async fn crashed(&self) -> String {
        let mut changes = self.changes();
        loop {
            let deaths = self.versions().into_iter().map(|version| {
                let (crashed, name) = (version.batcher.crashed(), version.model.clone());
                async move {
                    crashed.cancelled_owned().await;
                    name
                }
            });
            let mut deaths: FuturesUnordered<_> = deaths.collect();
            tokio::select! {
                Some(name) = deaths.next() => return name,
                changed = changes.changed() => if changed.is_err() {
                    std::future::pending::<()>().await; // cannot be: the sender is ours
                },
            }
        }
    }

    /// Looks at the repository again and again where that is wanted; never ends.
    pub async fn stay(self: &Arc<Self>) -> std::convert::Infallible {
        let poll = self.config.repository.as_ref().filter(|repository| repository.control == ModelControl::Poll);
        let Some(poll) = poll.map(|repository| repository.poll) else { return std::future::pending().await };
        loop {
            tokio::time::sleep(poll).await;
            let tensors = Arc::clone(self);
            if tokio::task::spawn_blocking(move || tensors.poll()).await.is_err() {
                tracing::error!("looking at the model repository crashed");
            }
        }
    }

    /// Lets the models go and waits for their threads.
    pub fn close(&self) {
        self.write_quietly(BTreeMap::clear);
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            if thread.join().is_err() {
                tracing::error!("a tensor model's thread had panicked");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stamps(found: &Found) -> BTreeMap<u64, Stamp> {
    found.versions.keys().map(|&number| (number, found.stamp(number))).collect()
}
