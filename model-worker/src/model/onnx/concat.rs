//! Language models whose graph joins past and new keys by `Concat`: each run gives a new, longer past.
//!
//! What a run gives is the past of the next one as it is. Rows that decode share a block of tensors
//! `[rows, kv_heads, columns, head_size]`; shorter ones have dead columns, which the mask hides, for in these graphs a
//! key's position is written into it when it is made. A block is gathered anew only when other rows decode together,
//! or when too much of it is dead.
//!
//! * `ledger` keeps the books: which columns of which tensors hold which row.
//! * `groups` says which rows share a run.
//! * `gather` copies columns, `logits` reads what a run answers.

mod gather;
mod groups;
mod lane;
mod ledger;
mod logits;

use std::borrow::Cow;

use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::TensorRef;

use super::super::{CausalModel, CausalShape, ModelError, Next, Positions, Row};
use super::rewrite::{self, Head};
use super::{CausalIo, run_error};
use gather::{Caches, gather};
use groups::groups;
use ledger::Ledger;
use logits::{is_same, keep_logits, sort_rows};

/// A language model in the layout of Optimum and transformers.js.
#[derive(Debug)]
pub struct ConcatModel {
    session: Session,
    io: CausalIo,
    shape: CausalShape,
    head: Head,
    /// Whether dead columns do no harm; `None` until it has been tried.
    holes: Option<bool>,
    /// The rows, and one more for trying things.
    ledger: Ledger<Caches>,
    buffers: Buffers,
    /// `[rows or positions wanted, vocab]`.
    logits: Vec<f32>,
}

/// Inputs of a run, kept for the next.
#[derive(Debug, Default)]
struct Buffers {
    /// `[lanes, new]`.
    ids: Vec<i64>,
    /// `[lanes, width + new]`.
    mask: Vec<i64>,
    /// `[lanes, new]`.
    positions: Vec<i64>,
    /// `[positions]`, counted from the first new token.
    wanted: Vec<i64>,
}

/// One run of a block.
#[derive(Debug, Clone, Copy)]
struct Run<'a> {
    block: usize,
    /// Rows of the block, in any order.
    rows: &'a [Row],
    /// Tokens by row, `new` each.
    tokens: &'a [u32],
    /// Tokens that each lane gets.
    new: usize,
    /// For how many of each lane's last tokens logits are wanted.
    wanted: usize,
}

impl ConcatModel {
    /// Wraps a loaded graph.
    pub fn new(session: Session, io: CausalIo, shape: CausalShape, head: Head) -> Self {
        // Without positions among its inputs, a graph either counts the mask's ones or the columns.
        let holes = io.position_ids.then_some(true);
        let shape = CausalShape { all_positions: head != Head::Last, ..shape };
        let ledger = Ledger::new(shape.rows + 1);
        Self { session, io, shape, head, holes, ledger, buffers: Buffers::default(), logits: Vec::new() }
    }

    /// Gives the block of just these rows with just so many tokens each.
    fn ready(&mut self, wanted: &[(Row, usize)]) -> Result<usize, ModelError> {
        self.check_held(wanted)?;
        let holes = self.holes.unwrap_or(false);
        let block = self.ledger.ready(wanted, holes, |ledger, gathering| gather(&self.io, ledger, gathering));
        block.map_err(run_error)
    }

    fn check_held(&self, wanted: &[(Row, usize)]) -> Result<(), ModelError> {
        let lacks = wanted.iter().find(|&&(row, tokens)| self.ledger.held(row) < tokens);
        lacks.map_or(Ok(()), |&(row, tokens)| {
            let held = self.ledger.held(row);
            Err(ModelError::Run(format!("row {} holds {held} tokens, and not {tokens}; read them first", row.0)))
        })
    }

    /// Runs a block; the logits are added in the order of its rows. Nothing changes when it fails.
    fn run(&mut self, run: Run<'_>) -> Result<(), ModelError> {
        self.fill(run);
        let lanes = run.rows.len();
        let width = self.ledger.width(run.block) + run.new;
        let caches = self.ledger.values(run.block);
        let inputs = self.buffers.inputs(&self.io, self.head, caches, lanes).map_err(run_error)?;
        let mut outputs = self.session.run(inputs).map_err(run_error)?;
        let present = present(&mut outputs, &self.io, [lanes, self.io.kv_heads, width, self.io.head_size])?;
        let order = run.rows.iter().map(|&row| self.ledger.lane(row));
        let logits = outputs.get("logits").ok_or_else(|| missing("logits"))?;
        keep_logits(logits, order, run.wanted, self.shape.vocab, &mut self.logits)?;
        self.ledger.advance(run.block, present, run.new);
        Ok(())
    }

    fn fill(&mut self, Run { block, rows, tokens, new, wanted }: Run<'_>) {
        let buffers = &mut self.buffers;
        buffers.ids.clear();
        buffers.ids.resize(rows.len() * new, 0);
        for (&row, tokens) in rows.iter().zip(tokens.chunks_exact(new)) {
            let ids = buffers.ids.iter_mut().skip(self.ledger.lane(row) * new);
            ids.zip(tokens).for_each(|(id, &token)| *id = i64::from(token));
        }
        self.ledger.mask(block, new, &mut buffers.mask);
        self.ledger.positions(block, new, &mut buffers.positions);
        // At least one: not every kernel has been tried on nothing.
        buffers.wanted.clear();
        buffers.wanted.extend((new - wanted.clamp(1, new)) as i64..new as i64);
    }

    /// Begins a new result, and gives back the memory of one that was much larger than those of decoding.
    fn clear_logits(&mut self) {
        self.logits.clear();
        self.logits.shrink_to(self.shape.rows * self.shape.vocab);
    }

    fn read_block(&mut self, row: Row, tokens: &[u32], past: usize, wanted: usize) -> Result<(), ModelError> {
        let block = self.ready(&[(row, past)])?;
        self.clear_logits();
        self.run(Run { block, rows: &[row], tokens, new: tokens.len(), wanted })
    }

    /// Whether dead columns do no harm: whether a text gives the same logits over a hole as without.
    fn try_holes(&mut self) -> Result<bool, ModelError> {
        let spare = Row(self.shape.rows);
        let same = self.compare_over_hole(spare);
        self.holes = None;
        self.ledger.release(spare);
        same
    }

    fn compare_over_hole(&mut self, spare: Row) -> Result<bool, ModelError> {
        let text: Vec<u32> = (0..10).map(|token| token % self.shape.vocab as u32).collect();
        self.read_block(spare, &text, 0, 1)?;
        let without = std::mem::take(&mut self.logits);
        self.read_block(spare, &text[..9], 0, 0)?;
        // One dead column in nine is too little to be gathered away.
        self.holes = Some(true);
        self.read_block(spare, &text[8..], 8, 1)?;
        Ok(is_same(&without, &self.logits))
    }

    /// The rows of a step, split into those that run together.
    fn split(&mut self, next: &[Next]) -> Result<Vec<Vec<usize>>, ModelError> {
        if next.len() > 1 && self.holes.is_none() {
            let holes = self.try_holes()?;
            tracing::debug!(holes, "tried whether rows of different lengths can run together");
            self.holes = Some(holes);
        }
        if self.holes != Some(true) {
            return Ok((0..next.len()).map(|row| vec![row]).collect());
        }
        Ok(groups(&next.iter().map(|next| next.past).collect::<Vec<_>>()))
    }

    /// Gives rows that others have left a block of their own, so that no memory is held for those others.
    fn settle(&mut self) -> Result<(), ModelError> {
        for row in self.ledger.left_behind() {
            self.ready(&[(row, self.ledger.held(row))])?;
        }
        Ok(())
    }
}

impl CausalModel for ConcatModel {
    fn shape(&self) -> CausalShape {
        self.shape
    }

    fn read(&mut self, row: Row, tokens: &[u32], past: usize, wanted: Positions) -> Result<&mut [f32], ModelError> {
        let wanted = match wanted {
            Positions::None => 0,
            Positions::Last => 1,
            Positions::All => tokens.len(),
        };
        self.read_block(row, tokens, past, wanted)?;
        Ok(&mut self.logits)
    }

    fn decode(&mut self, next: &[Next]) -> Result<&mut [f32], ModelError> {
        let mut blocks = Vec::new();
        for group in self.split(next)? {
            let wanted: Vec<_> = group.iter().map(|&row| (Row(row), next[row].past)).collect();
            blocks.push((self.ready(&wanted)?, group));
        }
        self.settle()?;
        self.clear_logits();
        let in_order = blocks.len() == 1;
        let mut order = Vec::with_capacity(next.len());
        for (block, group) in blocks {
            let rows: Vec<Row> = group.iter().map(|&row| Row(row)).collect();
            let tokens: Vec<u32> = group.iter().map(|&row| next[row].token).collect();
            self.run(Run { block, rows: &rows, tokens: &tokens, new: 1, wanted: 1 })?;
            order.extend(group);
        }
        if !in_order {
            sort_rows(&mut self.logits, &mut order, self.shape.vocab);
        }
        Ok(&mut self.logits)
    }

    fn swap(&mut self, (a, _): (Row, usize), (b, _): (Row, usize)) {
        self.ledger.swap(a, b);
    }

    fn copy(&mut self, from: Row, to: Row, tokens: usize) -> Result<(), ModelError> {
        let wanted = [(from, tokens)];
        let held = self.check_held(&wanted);
        let copy = |()| gather(&self.io, &self.ledger, &self.ledger.gathering(&wanted)).map_err(run_error);
        let caches = held.and_then(copy);
        if caches.is_err() {
            self.ledger.release(to);
        }
        self.ledger.install(caches?, &[(to, tokens)]);
        Ok(())
    }

    fn release(&mut self, row: Row) {
        self.ledger.release(row);
    }
}

impl Buffers {
    /// All inputs of a run, none of them copied: when it fails, the past is still there.
    fn inputs<'a>(
        &'a self,
        io: &'a CausalIo,
        head: Head,
        caches: &'a Caches,
        lanes: usize,
    ) -> ort::Result<Vec<(Cow<'a, str>, SessionInputValue<'a>)>> {
        let by_lane = |numbers: &'a [i64]| TensorRef::from_array_view(([lanes, numbers.len() / lanes], numbers));
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(caches.len() + 4);
        inputs.push(("input_ids".into(), by_lane(&self.ids)?.into()));
        inputs.push(("attention_mask".into(), by_lane(&self.mask)?.into()));
        if io.position_ids {
            inputs.push(("position_ids".into(), by_lane(&self.positions)?.into()));
        }
        if head == Head::Positions {
            let wanted = TensorRef::from_array_view(([self.wanted.len()], &self.wanted[..]))?;
            inputs.push((rewrite::POSITIONS.into(), wanted.into()));
        }
        inputs.extend(io.caches.iter().zip(caches).map(|(cache, value)| (cache.past.as_str().into(), value.into())));
        Ok(inputs)
    }
}

/// Takes the keys and values that a run gave; they must have this shape.
fn present(outputs: &mut SessionOutputs<'_>, io: &CausalIo, shape: [usize; 4]) -> Result<Caches, ModelError> {
    let take = |name: &str| {
        let value = outputs.remove(name).ok_or_else(|| missing(name))?;
        let (given, _) = value.try_extract_tensor::<f32>().map_err(run_error)?;
        if !given.iter().copied().eq(shape.iter().map(|&size| size as i64)) {
            return Err(ModelError::Run(format!("the graph gave `{name}` in the shape {given:?}, and not {shape:?}")));
        }
        Ok(value)
    };
    io.caches.iter().map(|cache| cache.present.as_str()).map(take).collect()
}

fn missing(output: &str) -> ModelError {
    ModelError::Run(format!("the graph gave no output `{output}`"))
}
