use super::past::{Asked, Past};
use super::*;
use crate::dispatch::Seat;
use crate::registry::Standing;

/// A worker as a look at its pool finds it.
pub(super) type Seen = (Seat, Arc<str>, Standing);

impl Journal {
    /// Panics where what is rebuilt of a decision is not what was, or the decision made again comes to something else.
    pub(crate) fn audit(&self) {
        let snapshot = self.snapshot();
        let kept = snapshot.decisions().count();
        assert_eq!((kept, self.seen.len()), (self.endings.len(), self.endings.len()));
        assert!(self.next() < self.limit as u64 || kept >= self.limit, "{kept} of {} are kept", self.limit);
        assert!(kept < self.limit + BLOCK.min(self.limit), "{kept} are kept, {} are to be", self.limit);
        let mut pasts: HashMap<u32, Past> = HashMap::new();
        for ((number, entry, changes, _), seen) in snapshot.decisions().zip(&self.seen) {
            let Some(id) = entry.stream else { continue };
            let stream = &snapshot.streams[&id];
            let past = pasts.entry(id).or_insert_with(|| stream.past(stream.policy));
            changes.iter().for_each(|change| past.apply(change));
            let rebuilt = past.workers().map(|(seat, worker, standing)| (seat, Arc::from(worker), standing));
            assert_eq!(rebuilt.collect::<Vec<Seen>>(), *seen, "workers at decision {number}");
            if let Verdict::Picked { seat, is_paused, seed } = entry.verdict {
                let exclude = entry.exclude.as_deref().unwrap_or_default();
                let Entry { affinity, wanted, .. } = *entry;
                let asked = Asked { model: &stream.model, affinity, wanted, is_paused, exclude, seed };
                assert_eq!(past.pick(&asked), Some(seat), "decision {number}");
            }
        }
        let streams = snapshot.streams.keys();
        let buried = |id: &u32| self.buried.iter().any(|(_, buried)| buried == id);
        assert!(streams.filter(|id| buried(id)).count() <= kept, "pools that are no more are not forgotten");
    }
}

#[test]
fn what_is_written_down_of_a_decision_is_small() {
    assert!(size_of::<Change>() <= 40, "{}", size_of::<Change>());
    assert!(size_of::<Entry>() <= 192, "{}", size_of::<Entry>());
    assert!(size_of::<Machine>() <= 88, "{}", size_of::<Machine>());
}
