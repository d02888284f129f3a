//! Who waits, who holds a row, and what the next step does. Knows neither tokens nor models.

use std::collections::VecDeque;

use crate::model::Row;

/// What the scheduler must know of a sequence.
pub trait Schedulable {
    /// Whether tokens of its prompt are still to be read.
    fn is_reading(&self) -> bool;
    /// Whether nobody wants its answer any more.
    fn is_abandoned(&self) -> bool;
}

/// What one step does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The row that reads a piece of its prompt.
    pub prefill: Option<Row>,
    /// The rows that each add a token.
    pub decode: Vec<Row>,
}

/// Sequences in the order of their arrival: those that hold a row, and those that wait for one.
#[derive(Debug)]
pub struct Scheduler<S> {
    waiting: VecDeque<S>,
    rows: Vec<Option<Running<S>>>,
    admitted: u64,
}

#[derive(Debug)]
struct Running<S> {
    sequence: S,
    /// Counts admissions, so that prompts are read in the order of arrival.
    turn: u64,
}

impl<S: Schedulable> Scheduler<S> {
    /// A scheduler over so many rows.
    pub fn new(rows: usize) -> Self {
        Self { waiting: VecDeque::new(), rows: std::iter::repeat_with(|| None).take(rows).collect(), admitted: 0 }
    }

    /// Lets a sequence wait for a row.
    pub fn enqueue(&mut self, sequence: S) {
        self.waiting.push_back(sequence);
    }

    /// Drops the sequences that nobody wants any more; gives the rows that are free now.
    pub fn drop_abandoned(&mut self) -> Vec<Row> {
        self.waiting.retain(|sequence| !sequence.is_abandoned());
        let abandoned =
            |slot: &Option<Running<S>>| slot.as_ref().is_some_and(|running| running.sequence.is_abandoned());
        let freed: Vec<Row> = (0..self.rows.len()).filter(|&row| abandoned(&self.rows[row])).map(Row).collect();
        for row in &freed {
            self.rows[row.0] = None;
        }
        freed
    }

    /// Gives free rows to those that wait, first come first served.
    pub fn admit(&mut self) {
        for slot in self.rows.iter_mut().filter(|slot| slot.is_none()) {
            let Some(sequence) = self.waiting.pop_front() else { return };
            *slot = Some(Running { sequence, turn: self.admitted });
            self.admitted += 1;
        }
    }

    /// The next step: one prompt is read at a time, the earliest first; everyone else adds a token.
    pub fn plan(&self) -> Plan {
        let running = || self.rows.iter().enumerate().filter_map(|(row, slot)| Some((Row(row), slot.as_ref()?)));
        let reading = running().filter(|(_, running)| running.sequence.is_reading());
        Plan {
            prefill: reading.min_by_key(|(_, running)| running.turn).map(|(row, _)| row),
            decode: running().filter(|(_, running)| !running.sequence.is_reading()).map(|(row, _)| row).collect(),
        }
    }

    /// The sequence that holds a row.
    ///
    /// # Panics
    /// When the row is free.
    pub fn sequence(&mut self, row: Row) -> &mut S {
        &mut self.rows[row.0].as_mut().expect("only rows of the current plan are asked for").sequence
    }

    /// Takes a row from its sequence.
    pub fn finish(&mut self, row: Row) -> Option<S> {
        self.rows[row.0].take().map(|running| running.sequence)
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running() == 0
    }

    /// Sequences that hold a row.
    pub fn running(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    /// Sequences that wait for a row.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Fake {
        id: usize,
        unread: usize,
        left: usize,
        abandoned: bool,
    }

    impl Schedulable for Fake {
        fn is_reading(&self) -> bool {
            self.unread > 0
        }

        fn is_abandoned(&self) -> bool {
            self.abandoned
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Arrive { unread: usize, left: usize },
        Abandon(usize),
        Step,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (1_usize..4, 1_usize..5).prop_map(|(unread, left)| Act::Arrive { unread, left }),
            (0_usize..4).prop_map(Act::Abandon),
            Just(Act::Step),
            Just(Act::Step),
        ];
        proptest::collection::vec(act, 1..60)
    }

    /// Runs one step, as the engine does; gives the ids of the sequences that ended.
    fn step(scheduler: &mut Scheduler<Fake>) -> Vec<usize> {
        scheduler.drop_abandoned();
        scheduler.admit();
        let plan = scheduler.plan();
        if let Some(row) = plan.prefill {
            scheduler.sequence(row).unread -= 1;
        }
        let mut ended = Vec::new();
        for row in plan.decode {
            let sequence = scheduler.sequence(row);
            sequence.left -= 1;
            if sequence.left == 0 {
                ended.extend(scheduler.finish(row).map(|sequence| sequence.id));
            }
        }
        ended
    }

    #[test]
    fn prompts_are_read_in_the_order_of_arrival() {
        let mut scheduler = Scheduler::new(2);
        for id in 0..3 {
            scheduler.enqueue(Fake { id, unread: 1, left: 1, abandoned: false });
        }
        let ended: Vec<usize> = (0..6).flat_map(|_| step(&mut scheduler)).collect();
        assert_eq!(ended, [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn every_sequence_ends_once_and_no_row_is_lost(rows in 1_usize..4, acts in acts()) {
            let mut scheduler = Scheduler::new(rows);
            let (mut arrived, mut ended, mut abandoned) = (0, Vec::new(), BTreeSet::new());
            for act in acts {
                match act {
                    Act::Arrive { unread, left } => {
                        scheduler.enqueue(Fake { id: arrived, unread, left, abandoned: false });
                        arrived += 1;
                    }
                    Act::Abandon(row) => {
                        if let Some(running) = scheduler.rows.get_mut(row).and_then(Option::as_mut) {
                            running.sequence.abandoned = true;
                            abandoned.insert(running.sequence.id);
                        }
                    }
                    Act::Step => ended.extend(step(&mut scheduler)),
                }
                prop_assert!(scheduler.running() <= rows);
            }
            while !scheduler.is_idle() {
                ended.extend(step(&mut scheduler));
            }
            let unique: BTreeSet<usize> = ended.iter().copied().collect();
            prop_assert_eq!(unique.len(), ended.len(), "a sequence ended twice");
            prop_assert!(unique.is_disjoint(&abandoned));
            prop_assert_eq!(unique.len() + abandoned.len(), arrived);
            prop_assert_eq!(scheduler.running(), 0);
        }
    }
}
