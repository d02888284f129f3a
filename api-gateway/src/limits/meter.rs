//! What one request has cost so far, and what was reserved for it: settled once, when its account is closed.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::budget::Given;
use crate::keys::ApiKey;

/// The meter of one request. Its numbers are touched by one thread at a time, so that counting a token is an addition.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Absent where nothing is limited, and where the request was refused.
    permit: OnceLock<Permit>,
    /// Tokens, as far as is known.
    spent: AtomicU64,
    /// Answers of which something has come, and of which nobody has told how many tokens.
    vague: AtomicU32,
    /// Whether usage in answers that pass through is of interest.
    reads_usage: AtomicBool,
}

#[derive(Debug)]
struct Permit {
    key: Arc<ApiKey>,
    given: Given,
}

impl Meter {
    /// The request was admitted.
    pub(super) fn admitted(&self, key: &Arc<ApiKey>, given: Given) {
        self.reads_usage.store(key.limits.tokens_per_minute.is_some(), Ordering::Relaxed);
        // A request is admitted once; were it twice, what is given twice must be given back.
        if let Err(twice) = self.permit.set(Permit { key: Arc::clone(key), given }) {
            twice.key.door.budget.settle(given, 0, Instant::now());
        }
    }

    /// So many tokens more.
    pub(crate) fn spend(&self, tokens: u64) {
        self.spent.fetch_add(tokens, Ordering::Relaxed);
    }

    /// What was counted of an answer is not what it has cost, as is told now, or it begins anew.
    pub(crate) fn take_back(&self, tokens: u64) {
        self.spent.fetch_sub(tokens, Ordering::Relaxed);
    }

    /// Something has come of an answer whose tokens nobody tells: unless it is told later, what was reserved stays charged.
    pub(crate) fn vague(&self) {
        self.vague.fetch_add(1, Ordering::Relaxed);
    }

    /// It was told.
    pub(crate) fn told(&self) {
        self.vague.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether usage in answers that pass through is of interest: looking for it costs time.
    pub(crate) fn reads_usage(&self) -> bool {
        self.reads_usage.load(Ordering::Relaxed)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let Some(Permit { key, given }) = self.permit.take() else { return };
        let spent = *self.spent.get_mut();
        let charged = if *self.vague.get_mut() > 0 { spent.max(given.tokens) } else { spent };
        key.door.tokens(&key.name, charged);
        key.door.budget.settle(given, charged, Instant::now());
    }
}
