//! The keys that are in force. They may change while the gateway runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{ApiKey, Door};
use crate::limits::KeyRate;
use crate::limits::rate::{Addresses, Bucket, RateLimit};

/// The keys of a gateway, for all of its threads.
#[derive(Debug)]
pub(crate) struct Keyring {
    /// Raised with every change.
    generation: AtomicU64,
    keys: Mutex<Vec<ApiKey>>,
    /// Of keys that have none of their own.
    rate: Option<RateLimit>,
    /// Of clients that show no key, or a wrong one where keys are wanted.
    addresses: Option<Addresses>,
}

/// What a change has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Changes {
    pub(crate) new: usize,
    pub(crate) changed: usize,
    pub(crate) gone: usize,
}

impl Keyring {
    /// Those that are in force at the start. `rate`: of each key that has none of its own, and of each
    /// address from which no good key comes.
    pub(crate) fn new(keys: Vec<ApiKey>, rate: Option<RateLimit>) -> Self {
        let addresses = rate.map(Addresses::new);
        let ring = Self { generation: AtomicU64::new(0), keys: Mutex::default(), rate, addresses };
        ring.change(keys);
        ring
    }

    /// Puts others in force. What a key with the same secret has used, it has used; else what one of the same name has,
    /// where that name was given to it.
    pub(crate) fn change(&self, keys: Vec<ApiKey>) -> Changes {
        let mut held = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old: HashMap<String, ApiKey> =
            held.drain(..).map(|key| (key.secret.expose().to_owned(), key)).collect();
        let same: Vec<_> = keys.iter().map(|key| old.remove(key.secret.expose())).collect();
        let mut named: HashMap<String, ApiKey> = old.into_values().map(|key| (key.name.clone(), key)).collect();
        let mut changes = Changes::default();
        for (mut key, same) in keys.into_iter().zip(same) {
            let before = same.or_else(|| {
                let other = named.remove(&key.name)?;
                if key.is_named && other.is_named {
                    return Some(other);
                }
                named.insert(key.name.clone(), other);
                None
            });
            match &before {
                None => changes.new += 1,
                Some(before) if !is_same(before, &key) => changes.changed += 1,
                Some(_) => {}
            }
            key.door = self.door(&key, before);
            held.push(key);
        }
        changes.gone = named.len();
        self.generation.fetch_add(1, Ordering::Release);
        changes
    }

    fn door(&self, key: &ApiKey, before: Option<ApiKey>) -> Door {
        let mut door = before.map_or_else(Door::default, |before| {
            let same_secret = before.secret.expose() == key.secret.expose();
            before.door.passed_on(before.name == key.name, same_secret)
        });
        let limit = match key.limits.rate {
            KeyRate::Usual => self.rate,
            KeyRate::Off => None,
            KeyRate::Own(limit) => Some(limit),
        };
        if door.bucket.as_ref().map(|bucket| bucket.limit) != limit {
            door.bucket = limit.map(|limit| Arc::new(Bucket::new(limit)));
        }
        door
    }
}

fn is_same(one: &ApiKey, other: &ApiKey) -> bool {
    let name = |key: &ApiKey| key.is_named.then(|| key.name.clone());
    let parts = |key: &ApiKey| (name(key), key.priority, key.models.clone(), key.limits.clone());
    one.secret.expose() == other.secret.expose() && parts(one) == parts(other)
}

/// The keys as one thread sees them: copies of its own, since counting holders of what all share costs more than the rest
/// of a look at them.
#[derive(Debug)]
pub(crate) struct Keys {
    ring: Arc<Keyring>,
    /// With the generation they are of. Nobody else's, so the lock is free.
    own: Mutex<(u64, Arc<[Arc<ApiKey>]>)>,
}

impl Keys {
    /// Of that ring.
    pub(crate) fn new(ring: Arc<Keyring>) -> Self {
        Self { ring, own: Mutex::new((0, Arc::new([]))) }
    }

    /// Those in force now, of which clients must show one; empty: everybody may ask.
    pub(crate) fn now(&self) -> Arc<[Arc<ApiKey>]> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.0 != self.ring.generation.load(Ordering::Acquire) {
            let keys = self.ring.keys.lock().unwrap_or_else(PoisonError::into_inner);
            let generation = self.ring.generation.load(Ordering::Acquire); // it rises under that lock
            *own = (generation, keys.iter().cloned().map(Arc::new).collect());
        }
        Arc::clone(&own.1)
    }

    /// The buckets of addresses, where requests are limited.
    pub(crate) fn addresses(&self) -> Option<&Addresses> {
        self.ring.addresses.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use muster_shared::secret::Secret;

    use super::*;
    use crate::limits::KeyLimits;
    use crate::limits::budget::Wants;

    fn key(name: &str, requests: u32) -> ApiKey {
        let limits = KeyLimits { requests_per_minute: NonZeroU32::new(requests), ..KeyLimits::default() };
        ApiKey::named(name, Secret::new(format!("key of {name}")), 0).expect("a name").with_limits(limits)
    }

    #[test]
    fn a_change_is_seen_by_every_thread_and_a_key_of_the_same_name_goes_on() {
        let ring = Arc::new(Keyring::new(vec![key("a", 1), key("b", 1)], None));
        let threads = [Keys::new(Arc::clone(&ring)), Keys::new(Arc::clone(&ring))];
        let admit = |keys: &Keys, name: &str| {
            let now = keys.now();
            let key = now.iter().find(|key| key.name == name)?;
            let wants = Wants { requests: 1, ..Wants::default() };
            Some(key.door.budget.admit(&key.limits, wants, std::time::Instant::now()).is_ok())
        };
        assert_eq!(
            (admit(&threads[0], "a"), admit(&threads[1], "a")),
            (Some(true), Some(false)),
            "one budget for both"
        );
        let changes = ring.change(vec![key("a", 2), key("c", 1)]);
        assert_eq!(changes, Changes { new: 1, changed: 1, gone: 1 });
        assert_eq!((admit(&threads[1], "a"), admit(&threads[0], "a")), (Some(true), Some(false)), "one more of two");
        assert_eq!((admit(&threads[0], "b"), admit(&threads[0], "c")), (None, Some(true)));
        assert_eq!(ring.change(vec![key("a", 2), key("c", 1)]), Changes::default());
    }

    #[test]
    fn keys_without_a_name_are_known_by_themselves_wherever_they_stand() {
        let unnamed = |secret: &str, place| {
            let limits = KeyLimits { requests_per_minute: NonZeroU32::new(1), ..KeyLimits::default() };
            ApiKey::unnamed(Secret::new(secret), place).with_limits(limits)
        };
        let ring = Arc::new(Keyring::new(vec![unnamed("one", 1), unnamed("two", 2), unnamed("three", 3)], None));
        let keys = Keys::new(Arc::clone(&ring));
        let find = |secret: &str| keys.now().iter().find(|key| key.secret.expose() == secret).cloned().expect("a key");
        let admit = |key: &ApiKey| {
            let wants = Wants { requests: 1, ..Wants::default() };
            key.door.budget.admit(&key.limits, wants, std::time::Instant::now()).is_ok()
        };
        let owner = find("two").owner();
        assert!(admit(&find("two")));
        let changes = ring.change(vec![unnamed("two", 1), unnamed("three", 2)]);
        assert_eq!(changes, Changes { gone: 1, ..Changes::default() }, "the others have only moved");
        assert_eq!((find("two").name.as_str(), find("two").owner()), ("key-1", owner));
        assert_eq!((admit(&find("two")), admit(&find("three"))), (false, true));
        let changes = ring.change(vec![unnamed("four", 1), unnamed("three", 2)]);
        assert_eq!(changes, Changes { new: 1, changed: 0, gone: 1 });
        assert!(admit(&find("four")), "it has nothing of the one in whose place it stands");
    }

    #[test]
    fn a_name_keeps_its_budget_under_another_secret_and_belongs_to_another() {
        let ring = Arc::new(Keyring::new(vec![key("a", 1)], None));
        let keys = Keys::new(Arc::clone(&ring));
        let budget = || Arc::clone(&keys.now()[0].door.budget);
        let (used, owner) = (budget(), keys.now()[0].owner());
        ring.change(vec![ApiKey { secret: Secret::new("another"), ..key("a", 1) }]);
        assert!(Arc::ptr_eq(&used, &budget()));
        assert_ne!(keys.now()[0].owner(), owner);
        let owner = keys.now()[0].owner();
        ring.change(vec![ApiKey { secret: Secret::new("another"), ..key("b", 1) }]);
        assert!(Arc::ptr_eq(&used, &budget()), "the same key under another name");
        assert_eq!(keys.now()[0].owner(), owner);
    }

    #[test]
    fn a_bucket_outlives_a_change_that_does_not_concern_it() {
        let rate = |text: &str| RateLimit::new(text.parse().expect("a rate"));
        let ring = Arc::new(Keyring::new(vec![key("a", 1)], Some(rate("1/h"))));
        let keys = Keys::new(Arc::clone(&ring));
        let take = || keys.now()[0].door.bucket.as_ref().map(|bucket| bucket.take().is_ok());
        assert_eq!((take(), take()), (Some(true), Some(false)));
        ring.change(vec![key("a", 2)]);
        assert_eq!(take(), Some(false));
        let own = |rate| key("a", 2).with_limits(KeyLimits { rate, ..KeyLimits::default() });
        ring.change(vec![own(KeyRate::Own(rate("2/h")))]);
        assert_eq!(take(), Some(true));
        ring.change(vec![own(KeyRate::Off)]);
        assert_eq!(take(), None);
    }
}
