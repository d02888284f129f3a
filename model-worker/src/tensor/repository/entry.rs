//! What is known of one model.

use super::{Arc, BTreeMap, IndexEntry, ModelState, Stamp, Version, Weak};

/// A model: what is served of it, and what happens with it.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Versions that can be asked.
    pub(super) versions: BTreeMap<u64, Arc<Version>>,
    /// Why a version could not be loaded.
    pub(super) failures: BTreeMap<u64, String>,
    /// Why there is no version, or why the last load failed.
    pub(super) reason: String,
    /// Whether it is being loaded.
    pub(super) loading: bool,
    /// Whether it is no part of the repository.
    pub(super) fixed: bool,
    /// Versions that were taken away, as long as requests run on them.
    going: Vec<(u64, Weak<Version>)>,
    /// How its files were when they were last looked at, or why they could not be.
    pub(super) seen: Option<Result<BTreeMap<u64, Stamp>, String>>,
}

impl Entry {
    /// Puts a version in the place of the one with its number, if there is one.
    pub(super) fn install(&mut self, number: u64, version: Arc<Version>) {
        let old = self.versions.insert(number, version);
        self.note_going(old.map(|old| (number, old)));
    }

    /// Takes versions away.
    pub(super) fn retire(&mut self, unwanted: impl Fn(u64) -> bool) {
        let numbers: Vec<u64> = self.versions.keys().copied().filter(|number| unwanted(*number)).collect();
        for number in numbers {
            let old = self.versions.remove(&number);
            self.note_going(old.map(|old| (number, old)));
        }
    }

    /// Takes all away, for that reason.
    pub(super) fn unload(&mut self, reason: &str) {
        self.retire(|_| true);
        self.failures.clear();
        self.reason = reason.to_owned();
    }

    fn note_going(&mut self, old: Option<(u64, Arc<Version>)>) {
        self.going.retain(|(_, version)| version.strong_count() > 0);
        self.going.extend(old.map(|(number, old)| (number, Arc::downgrade(&old))));
    }

    /// Versions that were taken away and on which requests run.
    pub(super) fn retiring(&self) -> Vec<Arc<Version>> {
        self.going.iter().filter_map(|(_, version)| version.upgrade()).collect()
    }

    /// Numbers of the versions that can be asked.
    pub(super) fn numbers(&self) -> Vec<String> {
        self.versions.keys().map(u64::to_string).collect()
    }

    /// What the index says of it.
    pub(super) fn index(&self, name: &str) -> Vec<IndexEntry> {
        let state = |number: &u64, state, reason: &str| IndexEntry {
            name: name.to_owned(),
            version: number.to_string(),
            state,
            reason: reason.to_owned(),
        };
        let failure = |number: &u64| self.failures.get(number).map(String::as_str);
        // A version that serves although a newer form of it could not be loaded says so.
        let ready = self.versions.keys().map(|number| {
            let whole = self.reason.as_str();
            state(number, ModelState::Ready, failure(number).unwrap_or(whole))
        });
        let failed = self.failures.iter().filter(|(number, _)| !self.versions.contains_key(number));
        let failed = failed.map(|(number, reason)| state(number, ModelState::Unavailable, reason));
        let going = self.going.iter().filter(|(_, version)| version.strong_count() > 0);
        let going = going.map(|(number, _)| state(number, ModelState::Unloading, "requests run on it"));
        let mut entries: Vec<IndexEntry> = ready.chain(failed).chain(going).collect();
        if self.loading {
            let loading = IndexEntry { state: ModelState::Loading, ..unavailable(name, "", "") };
            entries.push(loading);
        } else if entries.is_empty() {
            entries.push(unavailable(name, "", &self.reason));
        }
        entries
    }
}

/// A model that cannot be asked.
pub(super) fn unavailable(name: &str, version: &str, reason: &str) -> IndexEntry {
    IndexEntry {
        name: name.to_owned(),
        version: version.to_owned(),
        state: ModelState::Unavailable,
        reason: reason.to_owned(),
    }
}
