//! What one request has cost so far, and what was reserved for it: settled once, when its account is closed.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::budget::Given;
use super::estimate::Reserved;
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
    /// What was reserved for the prompt.
    prompt: AtomicU64,
    /// Tokens that each answer may have; 0 where nobody counts them.
    longest: AtomicU32,
    /// Whether a server may be left to find that in the request.
    is_said: AtomicBool,
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

    /// So much was reserved for it.
    pub(super) fn reserved(&self, reserved: Reserved) {
        self.prompt.store(reserved.prompt, Ordering::Relaxed);
        self.longest.store(u32::try_from(reserved.longest).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.is_said.store(reserved.is_said, Ordering::Relaxed);
    }

    /// What was reserved for the prompt.
    pub(crate) fn prompt(&self) -> u64 {
        self.prompt.load(Ordering::Relaxed)
    }

    /// Where each answer must end, so that none costs more than was reserved for it.
    pub(crate) fn longest(&self) -> Option<u32> {
        Some(self.longest.load(Ordering::Relaxed)).filter(|longest| *longest > 0)
    }

    /// The same, where the request does not say so itself in words that every server knows.
    pub(crate) fn unsaid(&self) -> Option<u32> {
        self.longest().filter(|_| !self.is_said.load(Ordering::Relaxed))
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
