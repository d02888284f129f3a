//! Conversation templates that were fetched a short while ago.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_shared::fastchat::Conversation;

/// How long a template is believed. FastChat's gateway never asks again, so that a worker which restarts with another
/// template is rendered with the old one.
const LIFETIME: Duration = Duration::from_secs(60);
/// Most templates kept: far more than a fleet has workers and models, and a few megabytes at most.
const LIMIT: usize = 1024;

/// Templates by worker and model.
#[derive(Debug, Default)]
pub(super) struct Templates {
    known: Mutex<HashMap<(String, String), Known>>,
}

#[derive(Debug)]
struct Known {
    template: Arc<Conversation>,
    fetched: Instant,
}

impl Templates {
    /// The template, if it was fetched less than a minute before `now`.
    pub(super) fn get(&self, address: &str, model: &str, now: Instant) -> Option<Arc<Conversation>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&(address.to_owned(), model.to_owned()))?;
        known.is_fresh(now).then(|| Arc::clone(&known.template))
    }

    /// Keeps a template; the stale ones, then the oldest, make room for it.
    pub(super) fn put(&self, address: &str, model: &str, template: Arc<Conversation>, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.to_owned(), model.to_owned());
        if known.len() >= LIMIT && !known.contains_key(&key) {
            known.retain(|_, known| known.is_fresh(now));
            if known.len() >= LIMIT {
                let oldest = known.iter().min_by_key(|(_, known)| known.fetched).map(|(key, _)| key.clone());
                oldest.and_then(|key| known.remove(&key));
            }
        }
        known.insert(key, Known { template, fetched: now });
    }
}

impl Known {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.fetched) < LIFETIME
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::template;
    use super::*;

    #[test]
    fn a_template_is_believed_for_a_minute() {
        let (templates, t0) = (Templates::default(), Instant::now());
        templates.put("http://w", "m", Arc::new(template(1)), t0);
        assert!(templates.get("http://w", "m", t0 + Duration::from_secs(59)).is_some());
        assert!(templates.get("http://w", "m", t0 + Duration::from_secs(60)).is_none());
        assert!(templates.get("http://w", "other", t0).is_none());
    }

    #[test]
    fn the_oldest_template_makes_room() {
        let (templates, t0) = (Templates::default(), Instant::now());
        for number in 0..=LIMIT {
            let later = t0 + Duration::from_millis(number as u64);
            templates.put("http://w", &number.to_string(), Arc::new(template(1)), later);
        }
        let now = t0 + Duration::from_secs(10);
        assert!(templates.get("http://w", "0", now).is_none());
        assert!(templates.get("http://w", "1", now).is_some());
        assert_eq!(templates.known.lock().expect("no test panics with it").len(), LIMIT);
    }
}
