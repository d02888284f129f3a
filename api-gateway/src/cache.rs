//! Answers that are kept, and given again to a client that asks for the very same.
//!
//! Only what can have one answer is kept: embeddings, scores and classes, and texts that are chosen greedily or by a seed.
//! An answer belongs to what the model's workers served when it was given, and to the API key that it was given to: nobody
//! learns, by how fast an answer comes, what somebody else has asked. A gateway hears of a changed model with its next look
//! at the fleet; until then old answers are given. Off unless configured.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::keys::ApiKey;
use crate::metrics;

/// What an entry takes beside what is in it, in bytes: its key, its place in the cache's tables.
const OVERHEAD: u64 = 256;
/// The part of the whole room, as one to so many, above which an answer is not kept: it would drive out too much.
const LARGEST: u64 = 8;

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// Room for answers, in bytes.
    pub bytes: u64,
    /// Time after which an answer is forgotten.
    pub ttl: Duration,
}

/// What a question is known by: a hash of all that its answer depends on.
type Name = [u8; 32];

/// Kept answers, of all threads of a gateway.
#[derive(Debug)]
pub(crate) struct Cache {
    kept: moka::sync::Cache<Name, Kept>,
    largest: u64,
}

/// An answer, in our own words.
#[derive(Debug, Clone)]
struct Kept {
    answer: Arc<dyn Any + Send + Sync>,
    /// What it takes.
    bytes: u32,
}

/// The place of one question's answer.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    cache: Arc<Cache>,
    name: Name,
}

impl Cache {
    /// With room for so much.
    pub(crate) fn new(CacheConfig { bytes, ttl }: CacheConfig) -> Self {
        let kept = moka::sync::Cache::builder()
            .max_capacity(bytes)
            .weigher(|_, kept: &Kept| kept.bytes)
            .time_to_live(ttl)
            .build();
        Self { kept, largest: bytes / LARGEST }
    }

    /// The place of the answer to a question, which comes with that key and goes to a model whose answers are known by that
    /// id. The question is without what its answer does not depend on: names for logs, deadlines.
    pub(crate) fn place(
        self: &Arc<Self>,
        key: Option<&ApiKey>,
        answers: Uuid,
        kind: &str,
        question: &impl Serialize,
    ) -> Place {
        let mut hash = Sha256::new();
        let owner = key.map(ApiKey::owner);
        serde_json::to_writer(Hashing(&mut hash), &(owner, answers, kind, question)).expect("our own types are JSON");
        Place { cache: Arc::clone(self), name: hash.finalize().into() }
    }
}

impl Place {
    /// The answer that is kept here.
    pub(crate) fn look<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let kept = self.cache.kept.get(&self.name);
        let found = kept.and_then(|kept| kept.answer.downcast().ok());
        metrics::looked_into_cache(found.is_some());
        found
    }

    /// The most that an answer may take, in bytes.
    pub(crate) fn most(&self) -> u64 {
        self.cache.largest
    }

    /// Keeps an answer that takes about so many bytes, if these are not too many.
    pub(crate) fn keep<T: Send + Sync + 'static>(&self, answer: Arc<T>, bytes: u64) {
        let bytes = OVERHEAD + bytes;
        if bytes > self.cache.largest {
            return;
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.cache.kept.insert(self.name, Kept { answer, bytes });
        metrics::cache_holds(self.cache.kept.entry_count(), self.cache.kept.weighted_size());
    }
}

/// About what an answer made of numbers takes in memory, in bytes: as much as in JSON, where they are longer.
pub(crate) fn size(answer: &impl Serialize) -> u64 {
    let mut counting = Counting(0);
    serde_json::to_writer(&mut counting, answer).expect("our own types are JSON");
    counting.0
}

/// Hashes what is written.
struct Hashing<'a>(&'a mut Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts what is written.
struct Counting(u64);

impl io::Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::secret::Secret;

    use super::*;

    fn cache(bytes: u64) -> Arc<Cache> {
        Arc::new(Cache::new(CacheConfig { bytes, ttl: Duration::from_secs(300) }))
    }

    #[test]
    fn an_answer_belongs_to_its_question_its_revision_and_its_key() {
        let cache = cache(1 << 20);
        let [alice, bob] = ["alice", "bob"].map(|name| ApiKey::named(name, Secret::new(name), 0).expect("a name"));
        let renewed = ApiKey::named("alice", Secret::new("another"), 0).expect("a name");
        let [one, two] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let place = cache.place(Some(&alice), one, "embed", &"what");
        assert_eq!(place.look::<String>(), None);
        place.keep(Arc::new("this".to_owned()), 4);
        assert_eq!(place.look::<String>().as_deref().map(String::as_str), Some("this"));
        for other in [
            cache.place(Some(&bob), one, "embed", &"what"),
            cache.place(Some(&renewed), one, "embed", &"what"),
            cache.place(None, one, "embed", &"what"),
            cache.place(Some(&alice), two, "embed", &"what"),
            cache.place(Some(&alice), one, "rerank", &"what"),
            cache.place(Some(&alice), one, "embed", &"else"),
        ] {
            assert_eq!(other.look::<String>(), None);
        }
        assert_eq!(place.look::<u32>(), None, "something else than was kept");
    }

    #[test]
    fn the_room_is_bounded_and_what_would_take_too_much_of_it_is_not_kept() {
        let cache = cache(64 << 10);
        let large = cache.place(None, Uuid::nil(), "k", &"large");
        large.keep(Arc::new("x".repeat(9 << 10)), 9 << 10);
        assert_eq!(large.look::<String>(), None, "more than an eighth");
        for number in 0..1000 {
            cache.place(None, Uuid::nil(), "k", &number).keep(Arc::new("x".repeat(1 << 10)), 1 << 10);
        }
        cache.kept.run_pending_tasks();
        let (held, count) = (cache.kept.weighted_size(), cache.kept.entry_count());
        assert!(held <= 64 << 10 && (40..=64).contains(&count), "{count} entries of {held} bytes");
    }

    #[test]
    fn an_answer_is_forgotten_when_its_time_is_over() {
        let cache = Arc::new(Cache::new(CacheConfig { bytes: 1 << 20, ttl: Duration::from_millis(1) }));
        let place = cache.place(None, Uuid::nil(), "k", &1);
        place.keep(Arc::new(1_u32), 4);
        let begun = std::time::Instant::now();
        while place.look::<u32>().is_some() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it is still there");
            std::thread::yield_now();
        }
    }
}
