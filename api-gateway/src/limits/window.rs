//! What was used in the last minute.
//!
//! Use is counted by the second, and given back wholly a minute after its second has ended. So in *no* sixty seconds more
//! than a limit is used, wherever they begin, and memory is the same for one request as for a million.

use std::time::Duration;

/// Seconds that count: a minute, and the second that runs.
const SLOTS: u64 = 61;

/// Use, second by second. Times are those since any fixed beginning; one that lies before the last counts as that.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    slots: [u64; SLOTS as usize],
    /// The second that runs.
    newest: u64,
    /// The sum of all slots.
    used: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { slots: [0; SLOTS as usize], newest: 0, used: 0 }
    }
}

impl Window {
    /// What is used of the last minute.
    pub(crate) fn used(&mut self, now: Duration) -> u64 {
        self.advance(now);
        self.used
    }

    /// Uses so much more; gives the second in which it was.
    pub(crate) fn take(&mut self, amount: u64, now: Duration) -> u64 {
        self.advance(now);
        self.add(self.newest, amount);
        self.newest
    }

    /// So much was taken in that second, and so much is what it came to. What exceeds it is charged even where that
    /// second counts no more: then to the one that runs.
    pub(crate) fn settle(&mut self, slot: u64, taken: u64, real: u64, now: Duration) {
        self.advance(now);
        let counts = slot + SLOTS > self.newest;
        match real.checked_sub(taken) {
            Some(more) => self.add(if counts { slot } else { self.newest }, more),
            None if counts => {
                let slot = &mut self.slots[(slot % SLOTS) as usize];
                let less = (taken - real).min(*slot);
                *slot -= less;
                self.used -= less;
            }
            None => {}
        }
    }

    /// The time until no more than that is used, if nothing is added.
    pub(crate) fn falls_to(&mut self, level: u64, now: Duration) -> Duration {
        self.advance(now);
        let mut left = self.used;
        let mut slot = (self.newest + 1).saturating_sub(SLOTS);
        while left > level && slot <= self.newest {
            left -= self.slots[(slot % SLOTS) as usize];
            slot += 1;
        }
        if slot == (self.newest + 1).saturating_sub(SLOTS) {
            return Duration::ZERO;
        }
        Duration::from_secs(slot - 1 + SLOTS).saturating_sub(now)
    }

    fn add(&mut self, slot: u64, amount: u64) {
        let amount = amount.min(u64::MAX - self.used);
        self.slots[(slot % SLOTS) as usize] += amount;
        self.used += amount;
    }

    /// Gives back what is older than a minute.
    fn advance(&mut self, now: Duration) {
        let slot = now.as_secs();
        let passed = slot.saturating_sub(self.newest).min(SLOTS);
        for number in slot + 1 - passed.min(slot + 1)..=slot {
            if passed == 0 {
                return;
            }
            self.used -= std::mem::take(&mut self.slots[(number % SLOTS) as usize]);
        }
        self.newest = self.newest.max(slot);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn use_is_given_back_a_minute_after_its_second() {
        let mut window = Window::default();
        assert_eq!(window.take(3, at(1_999)), 1);
        window.take(2, at(2_000));
        assert_eq!(window.used(at(61_999)), 5);
        assert_eq!(window.used(at(62_000)), 2);
        assert_eq!(window.used(at(63_000)), 0);
    }

    #[test]
    fn the_time_until_there_is_room_is_told() {
        let mut window = Window::default();
        assert_eq!(window.falls_to(0, at(500)), Duration::ZERO);
        window.take(3, at(1_500));
        window.take(2, at(10_000));
        assert_eq!(window.falls_to(5, at(20_000)), Duration::ZERO);
        assert_eq!(window.falls_to(4, at(20_250)), at(41_750), "the three of the first second end at 62 s");
        assert_eq!(window.falls_to(1, at(20_000)), at(51_000));
        assert_eq!((window.used(at(70_999)), window.used(at(71_000))), (2, 0));
    }

    #[test]
    fn what_is_settled_counts_in_its_own_second() {
        let mut window = Window::default();
        let slot = window.take(100, at(1_000));
        window.settle(slot, 100, 7, at(30_000));
        assert_eq!((window.used(at(30_000)), window.used(at(62_000))), (7, 0));
        let slot = window.take(10, at(70_000));
        window.settle(slot, 10, 25, at(71_000));
        assert_eq!(window.used(at(71_000)), 25);
    }

    #[test]
    fn an_answer_that_takes_longer_than_a_minute_pays_what_exceeds_its_reservation() {
        let mut window = Window::default();
        let slot = window.take(10, at(0));
        window.settle(slot, 10, 4, at(90_000));
        assert_eq!(window.used(at(90_000)), 0, "what it was given has passed");
        let slot = window.take(10, at(100_000));
        window.settle(slot, 10, 40, at(200_500));
        assert_eq!((window.used(at(200_500)), window.used(at(261_000))), (30, 0));
    }

    #[derive(Debug, Clone)]
    enum Deed {
        Wait(u64),
        Take(u64),
        Settle(prop::sample::Index, u64),
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let deed = prop_oneof![
            (0..130_000_u64).prop_map(Deed::Wait),
            (0..3_000_u64).prop_map(Deed::Wait),
            (0..50_u64).prop_map(Deed::Take),
            (any::<prop::sample::Index>(), 0..80_u64).prop_map(|(which, real)| Deed::Settle(which, real)),
        ];
        prop::collection::vec(deed, 0..60)
    }

    proptest! {
        /// The model keeps every use for ever, with its second.
        #[test]
        fn it_agrees_with_a_list_of_everything(deeds in deeds()) {
            let (mut window, mut all, mut open, mut now) = (Window::default(), Vec::<(u64, u64)>::new(), Vec::new(), 0);
            for deed in deeds {
                match deed {
                    Deed::Wait(millis) => now += millis,
                    Deed::Take(amount) => {
                        let slot = window.take(amount, at(now));
                        prop_assert_eq!(slot, now / 1000);
                        open.push((all.len(), amount));
                        all.push((slot, amount));
                    }
                    Deed::Settle(which, real) if !open.is_empty() => {
                        let (index, taken) = open.swap_remove(which.index(open.len()));
                        window.settle(all[index].0, taken, real, at(now));
                        if all[index].0 + 61 > now / 1000 {
                            all[index].1 = real;
                        } else if real > taken {
                            all.push((now / 1000, real - taken));
                        }
                    }
                    Deed::Settle(..) => {}
                }
                let counts = |slot: u64, millis: u64| (slot + 61) * 1000 > millis;
                let used = |millis| all.iter().filter(|(slot, _)| counts(*slot, millis)).map(|(_, amount)| amount).sum::<u64>();
                prop_assert_eq!(window.used(at(now)), used(now));
                let level = used(now) / 2;
                let wait = window.falls_to(level, at(now)).as_millis() as u64;
                prop_assert!(used(now + wait) <= level);
                prop_assert!(wait == 0 || used(now + wait - 1) > level, "it could have been sooner");
            }
        }

        #[test]
        fn no_sixty_seconds_see_more_than_the_limit(asks in prop::collection::vec((0..20_000_u64, 1..30_u64), 1..120)) {
            const LIMIT: u64 = 50;
            let (mut window, mut passed, mut now) = (Window::default(), Vec::new(), 0);
            for (wait, amount) in asks {
                now += wait;
                if window.used(at(now)) + amount <= LIMIT {
                    window.take(amount, at(now));
                    passed.push((now, amount));
                }
            }
            for (begin, _) in &passed {
                let within = passed.iter().filter(|(time, _)| (*begin..begin + 60_000).contains(time));
                prop_assert!(within.map(|(_, amount)| amount).sum::<u64>() <= LIMIT);
            }
        }
    }
}
