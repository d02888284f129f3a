//! Where every row's keys and values are: in which block, in which lane of it, in which columns. Knows no tensors.
//!
//! A block is what one run takes as its past and gives back longer: lanes beside each other, all of the same width.
//! Lanes may have holes. Whenever the rows of a run are not just the lanes of one block, a new block is gathered from
//! the live columns of the old ones; that is the only way in which anything is copied.

use std::ops::Range;

use super::super::super::Row;
use super::lane::Lane;

/// A block is gathered anew when more than one part in so many of its longest lane is dead in all of its lanes.
///
/// Dead columns cost as much in every run as live ones, and gathering costs about what one run copies: at a fourth,
/// gathering has paid for itself after four steps, and a sequence that takes back a token now and then is not copied
/// each time.
const WASTE: usize = 4;

/// The blocks, each with its tensors `T`, and the rows in them.
#[derive(Debug)]
pub(super) struct Ledger<T> {
    /// With gaps, so that numbers of blocks stay what they are.
    blocks: Vec<Option<Block<T>>>,
    rows: Vec<Option<Place>>,
}

/// Lanes that run together.
#[derive(Debug)]
struct Block<T> {
    values: T,
    width: usize,
    /// `None` where the row has left.
    lanes: Vec<Option<Lane>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    block: usize,
    lane: usize,
}

/// What a new block consists of: lanes, each with its tokens in its first columns.
#[derive(Debug)]
pub(super) struct Gathering {
    /// Columns of the new block: those of its longest lane.
    pub(super) width: usize,
    /// Where each lane comes from; `None` for one that begins empty.
    pub(super) lanes: Vec<Option<Source>>,
}

/// Columns of a lane of a block.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) block: usize,
    pub(super) lane: usize,
    pub(super) columns: Vec<Range<usize>>,
}

impl<T> Ledger<T> {
    /// So many rows, all empty.
    pub(super) fn new(rows: usize) -> Self {
        Self { blocks: Vec::new(), rows: vec![None; rows] }
    }

    /// Tokens that a row holds.
    pub(super) fn held(&self, row: Row) -> usize {
        self.rows[row.0].map_or(0, |place| self.lane_at(place).len())
    }

    /// The block's tensors.
    pub(super) fn values(&self, block: usize) -> &T {
        &self.block(block).values
    }

    /// The block's columns.
    pub(super) fn width(&self, block: usize) -> usize {
        self.block(block).width
    }

    /// The lane of a row that is in a block.
    pub(super) fn lane(&self, row: Row) -> usize {
        self.rows[row.0].expect("only rows of a block are asked for").lane
    }

    /// Gives the block whose lanes are just these rows, each with just its first so many tokens, which it must hold.
    /// Without `holes` none of its columns is dead.
    ///
    /// `gather` makes the tensors of a new block.
    ///
    /// # Errors
    /// Those of `gather`; then every row still holds its first so many tokens.
    pub(super) fn ready<E>(
        &mut self,
        wanted: &[(Row, usize)],
        holes: bool,
        gather: impl FnOnce(&Self, &Gathering) -> Result<T, E>,
    ) -> Result<usize, E> {
        wanted.iter().for_each(|&(row, tokens)| self.truncate(row, tokens));
        match self.shared(wanted) {
            Some(block) if !self.block(block).is_wasteful(holes) => Ok(block),
            _ => {
                let values = gather(self, &self.gathering(wanted))?;
                Ok(self.install(values, wanted))
            }
        }
    }

    /// What a block of the first tokens of these rows consists of.
    pub(super) fn gathering(&self, wanted: &[(Row, usize)]) -> Gathering {
        let source = |&(row, tokens): &(Row, usize)| {
            let place = self.rows[row.0].filter(|_| tokens > 0)?;
            let columns = self.lane_at(place).first(tokens);
            Some(Source { block: place.block, lane: place.lane, columns })
        };
        Gathering { width: longest(wanted), lanes: wanted.iter().map(source).collect() }
    }

    /// Puts rows into a new block that was gathered for them; what they held before is given up.
    pub(super) fn install(&mut self, values: T, wanted: &[(Row, usize)]) -> usize {
        wanted.iter().for_each(|&(row, _)| self.release(row));
        let lanes = wanted.iter().map(|&(_, tokens)| Some(Lane::packed(tokens))).collect();
        let new = Block { values, width: longest(wanted), lanes };
        let block = self.blocks.iter().position(Option::is_none).unwrap_or(self.blocks.len());
        match self.blocks.get_mut(block) {
            Some(gap) => *gap = Some(new),
            None => self.blocks.push(Some(new)),
        }
        for (lane, &(row, _)) in wanted.iter().enumerate() {
            self.rows[row.0] = Some(Place { block, lane });
        }
        block
    }

    /// Takes the tensors that a run gave for a block: `columns` more, live in every lane.
    pub(super) fn advance(&mut self, block: usize, values: T, columns: usize) {
        let block = self.block_mut(block);
        let new = block.width..block.width + columns;
        block.lanes.iter_mut().flatten().for_each(|lane| lane.append(new.clone()));
        (block.values, block.width) = (values, new.end);
    }

    /// Rows of blocks that others have left, so that the memory of those can be had back by taking them out.
    pub(super) fn left_behind(&self) -> Vec<Row> {
        let deserted = |place: Place| self.block(place.block).lanes.iter().any(Option::is_none);
        (0..self.rows.len()).filter(|&row| self.rows[row].is_some_and(deserted)).map(Row).collect()
    }

    /// Writes a mask `[lanes, width + new]` for a run that adds so many columns to a block.
    pub(super) fn mask(&self, block: usize, new: usize, mask: &mut Vec<i64>) {
        let block = self.block(block);
        mask.clear();
        for lane in &block.lanes {
            lane.as_ref().into_iter().for_each(|lane| lane.mask(block.width, mask));
            mask.resize(mask.len() + new, 1);
        }
    }

    /// Writes the positions `[lanes, new]` of the tokens that a run adds to a block.
    pub(super) fn positions(&self, block: usize, new: usize, positions: &mut Vec<i64>) {
        positions.clear();
        let lanes = self.block(block).lanes.iter().flatten().map(|lane| lane.len() as i64);
        lanes.for_each(|past| positions.extend(past..past + new as i64));
    }

    /// Exchanges what two rows hold.
    pub(super) fn swap(&mut self, a: Row, b: Row) {
        self.rows.swap(a.0, b.0);
    }

    /// Gives up what a row holds, and its block with it when it was the last.
    pub(super) fn release(&mut self, row: Row) {
        let Some(place) = self.rows[row.0].take() else { return };
        let lanes = &mut self.block_mut(place.block).lanes;
        lanes[place.lane] = None;
        if lanes.iter().all(Option::is_none) {
            self.blocks[place.block] = None;
        }
    }

    fn truncate(&mut self, row: Row, tokens: usize) {
        if let Some(place) = self.rows[row.0] {
            let lane = self.block_mut(place.block).lanes[place.lane].as_mut();
            lane.expect("a row's lane is there").truncate(tokens);
        }
    }

    /// The block whose lanes are just these rows.
    fn shared(&self, wanted: &[(Row, usize)]) -> Option<usize> {
        let block = self.rows[wanted.first()?.0.0]?.block;
        let inside = |&(row, _): &(Row, usize)| self.rows[row.0].is_some_and(|place| place.block == block);
        (self.block(block).lanes.len() == wanted.len() && wanted.iter().all(inside)).then_some(block)
    }

    fn lane_at(&self, place: Place) -> &Lane {
        self.block(place.block).lanes[place.lane].as_ref().expect("a row's lane is there")
    }

    fn block(&self, block: usize) -> &Block<T> {
        self.blocks[block].as_ref().expect("a block lives as long as a row is in it")
    }

    fn block_mut(&mut self, block: usize) -> &mut Block<T> {
        self.blocks[block].as_mut().expect("a block lives as long as a row is in it")
    }
}

impl<T> Block<T> {
    fn is_wasteful(&self, holes: bool) -> bool {
        let lengths = || self.lanes.iter().flatten().map(Lane::len);
        let longest = lengths().max().unwrap_or(0);
        if holes { (self.width - longest) * WASTE > longest } else { lengths().any(|length| length < self.width) }
    }
}

fn longest(wanted: &[(Row, usize)]) -> usize {
    wanted.iter().map(|&(_, tokens)| tokens).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    const ROWS: usize = 6;
    /// Stands in columns that hold nothing.
    const DEAD: u32 = u32::MAX;

    /// The tensors of a block: each column of each lane holds its token.
    type Columns = Vec<Vec<u32>>;

    #[derive(Debug, Clone)]
    enum Step {
        Read {
            row: usize,
            new: usize,
            past: usize,
        },
        /// The first so many rows; each takes back so many tokens before.
        Decode {
            rows: usize,
            back: usize,
        },
        Swap(usize, usize),
        Copy {
            from: usize,
            to: usize,
            tokens: usize,
        },
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let row = || 0..ROWS;
        prop_oneof![
            (row(), 1_usize..9, 0_usize..30).prop_map(|(row, new, past)| Step::Read { row, new, past }),
            (1..=ROWS, prop_oneof![9 => Just(0_usize), 1 => 1_usize..4])
                .prop_map(|(rows, back)| Step::Decode { rows, back }),
            (row(), row()).prop_map(|(a, b)| Step::Swap(a, b)),
            (row(), row(), 0_usize..30).prop_map(|(from, to, tokens)| Step::Copy { from, to, tokens }),
            row().prop_map(Step::Release),
        ]
    }

    /// The ledger beside what it must say: the tokens of each row.
    struct Model {
        ledger: Ledger<Columns>,
        rows: Vec<Vec<u32>>,
        next: u32,
        holes: bool,
        copied: usize,
    }

    fn gather(ledger: &Ledger<Columns>, gathering: &Gathering) -> Columns {
        let lane = |source: &Option<Source>| {
            let mut lane = vec![DEAD; gathering.width];
            if let Some(Source { block, lane: from, columns }) = source {
                let columns = columns.iter().cloned().flatten();
                lane.iter_mut().zip(columns).for_each(|(to, column)| *to = ledger.values(*block)[*from][column]);
            }
            lane
        };
        gathering.lanes.iter().map(lane).collect()
    }

    impl Model {
        fn ready(&mut self, wanted: &[(Row, usize)]) -> usize {
            let copied = &mut self.copied;
            let block = self.ledger.ready(wanted, self.holes, |ledger, gathering| {
                *copied += 1;
                Ok::<_, Infallible>(gather(ledger, gathering))
            });
            block.expect("nothing fails")
        }

        /// As ONNX Runtime would: every lane is given its new columns.
        fn run(&mut self, wanted: &[(Row, usize)], new: usize) {
            let block = self.ready(wanted);
            self.check_inputs(block, wanted, new);
            let mut values = self.ledger.values(block).clone();
            for &(row, past) in wanted {
                let tokens = self.next..self.next + new as u32;
                self.next = tokens.end;
                values[self.ledger.lane(row)].extend(tokens.clone());
                self.rows[row.0].truncate(past);
                self.rows[row.0].extend(tokens);
            }
            self.ledger.advance(block, values, new);
        }

        fn check_inputs(&self, block: usize, wanted: &[(Row, usize)], new: usize) {
            let (mut mask, mut positions) = (Vec::new(), Vec::new());
            self.ledger.mask(block, new, &mut mask);
            self.ledger.positions(block, new, &mut positions);
            let width = self.ledger.width(block);
            assert_eq!((mask.len(), positions.len()), (wanted.len() * (width + new), wanted.len() * new));
            let longest = wanted.iter().map(|&(_, past)| past).max().expect("rows");
            assert!((width - longest) * WASTE <= longest, "{width} columns for {longest} tokens");
            for &(row, past) in wanted {
                let lane = self.ledger.lane(row);
                let mask = &mask[lane * (width + new)..][..width + new];
                assert_eq!(mask.iter().sum::<i64>(), (past + new) as i64);
                assert!(mask[width..].iter().all(|&live| live == 1));
                assert!(self.holes || past == width);
                let live = self.ledger.values(block)[lane].iter().zip(mask).filter(|&(_, &live)| live == 1);
                assert!(live.map(|(token, _)| token).eq(&self.rows[row.0][..past]));
                assert_eq!(positions[lane * new], past as i64);
            }
        }

        fn step(&mut self, step: &Step) {
            match *step {
                Step::Read { row, new, past } => {
                    let past = past.min(self.rows[row].len());
                    self.run(&[(Row(row), past)], new);
                }
                Step::Decode { rows, back } => self.decode(rows, back),
                Step::Swap(a, b) => {
                    self.ledger.swap(Row(a), Row(b));
                    self.rows.swap(a, b);
                }
                Step::Copy { from, to, tokens } => {
                    let tokens = tokens.min(self.rows[from].len());
                    let values = gather(&self.ledger, &self.ledger.gathering(&[(Row(from), tokens)]));
                    self.ledger.install(values, &[(Row(to), tokens)]);
                    self.rows[to] = self.rows[from][..tokens].to_vec();
                }
                Step::Release(row) => {
                    self.ledger.release(Row(row));
                    self.rows[row].clear();
                }
            }
        }

        fn decode(&mut self, rows: usize, back: usize) {
            let wanted: Vec<_> = (0..rows).map(|row| (Row(row), self.rows[row].len().saturating_sub(back))).collect();
            if self.holes {
                self.run(&wanted, 1);
            } else {
                wanted.iter().for_each(|&row| self.run(&[row], 1));
            }
            for row in self.ledger.left_behind() {
                self.ready(&[(row, self.ledger.held(row))]);
            }
            // Nothing is held for rows that have left.
            let lanes = self.ledger.blocks.iter().flatten().flat_map(|block| &block.lanes);
            assert!(lanes.clone().all(Option::is_some));
            assert!(lanes.count() <= ROWS);
        }

        fn check(&self) {
            for (row, tokens) in self.rows.iter().enumerate() {
                let gathering = self.ledger.gathering(&[(Row(row), tokens.len())]);
                assert_eq!(self.ledger.held(Row(row)), tokens.len());
                assert_eq!(&gather(&self.ledger, &gathering)[0], tokens);
            }
        }
    }

    fn model(holes: bool) -> Model {
        Model { ledger: Ledger::new(ROWS), rows: vec![Vec::new(); ROWS], next: 0, holes, copied: 0 }
    }

    proptest! {
        #[test]
        fn the_live_columns_of_a_row_are_its_tokens(holes: bool, steps in prop::collection::vec(step(), 0..60)) {
            let mut model = model(holes);
            for step in &steps {
                model.step(step);
                model.check();
            }
            (0..ROWS).for_each(|row| model.ledger.release(Row(row)));
            prop_assert!(model.ledger.blocks.iter().all(Option::is_none), "memory is held for nobody");
            prop_assert!(model.ledger.blocks.len() <= ROWS + 1);
        }
    }

    #[test]
    fn nothing_is_copied_while_the_same_rows_decode_in_whatever_order() {
        let mut model = model(true);
        for (row, length) in [(0, 50), (1, 7), (2, 20)] {
            model.run(&[(Row(row), 0)], length);
        }
        model.copied = 0;
        for _ in 0..100 {
            model.decode(3, 0);
            model.step(&Step::Swap(0, 2));
            model.run(&[(Row(4), model.rows[4].len())], 1);
        }
        assert_eq!(model.copied, 2, "once for the batch, once for the row that begins to read");
    }

    #[test]
    fn taking_back_a_token_now_and_then_copies_seldom() {
        let mut model = model(true);
        model.run(&[(Row(0), 0)], 40);
        model.copied = 0;
        (0..100).for_each(|_| model.decode(1, 0));
        (0..100).for_each(|_| model.decode(1, 1));
        assert!((1..=4).contains(&model.copied), "{} copies", model.copied);
        model.check();
    }
}
