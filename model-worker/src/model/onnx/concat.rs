//! Language models whose graph joins past and new keys by `Concat`: each run gives a new, longer past.

use std::borrow::Cow;

use ort::memory::Allocator;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor};

use super::super::{CausalModel, CausalShape, ModelError, Next, Positions, Row};
use super::rewrite::{self, Head};
use super::{CausalIo, as_i64, last_logits, positions, run_error};

/// A language model in the layout of Optimum and transformers.js.
#[derive(Debug)]
pub struct ConcatModel {
    session: Session,
    head: Head,
    io: CausalIo,
    shape: CausalShape,
    /// Keys and values of each row, in the order of `io.caches`; empty before the row's first run.
    rows: Vec<Vec<DynValue>>,
    logits: Vec<f32>,
    batch: Vec<f32>,
}

impl ConcatModel {
    /// Wraps a loaded graph.
    pub fn new(session: Session, head: Head, io: CausalIo, shape: CausalShape) -> Self {
        let rows = std::iter::repeat_with(Vec::new).take(shape.rows).collect();
        Self { session, head, io, shape, rows, logits: vec![0.0; shape.vocab], batch: Vec::new() }
    }

    /// The row's past, moved out; of a fresh row, tensors of no columns.
    fn take_past(&mut self, row: Row, past: usize) -> ort::Result<Vec<DynValue>> {
        let held = std::mem::take(&mut self.rows[row.0]);
        if past > 0 {
            return Ok(held);
        }
        let shape = [1, self.io.kv_heads as i64, 0, self.io.head_size as i64];
        let empty = || Ok(Tensor::<f32>::new(&Allocator::default(), shape)?.into_dyn());
        std::iter::repeat_with(empty).take(self.io.caches.len()).collect()
    }

    fn run(&mut self, row: Row, tokens: &[u32], past: usize) -> ort::Result<Result<(), ModelError>> {
        let (new, total) = (tokens.len(), past + tokens.len());
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(self.io.caches.len() + 4);
        inputs.push(("input_ids".into(), Tensor::from_array(([1, new], as_i64(tokens)))?.into()));
        inputs.push(("attention_mask".into(), Tensor::from_array(([1, total], vec![1_i64; total]))?.into()));
        if self.io.position_ids {
            inputs.push(("position_ids".into(), Tensor::from_array(([1, new], positions(past, new)))?.into()));
        }
        if self.head == Head::Positions {
            inputs.push((rewrite::POSITIONS.into(), Tensor::from_array(([1], vec![new as i64 - 1]))?.into()));
        }
        let held = self.take_past(row, past)?;
        for (cache, value) in self.io.caches.iter().zip(held) {
            inputs.push((cache.past.as_str().into(), value.into()));
        }
        let mut outputs = self.session.run(inputs)?;
        let present = self.io.caches.iter().map(|cache| outputs.remove(&cache.present));
        let Some(present) = present.collect::<Option<Vec<_>>>() else {
            return Ok(Err(ModelError::Run("the graph gave no present keys and values".to_owned())));
        };
        self.rows[row.0] = present;
        let (shape, logits) = outputs["logits"].try_extract_tensor::<f32>()?;
        Ok(last_logits(shape, logits, &mut self.logits))
    }
}

impl CausalModel for ConcatModel {
    fn shape(&self) -> CausalShape {
        self.shape
    }

    fn read(&mut self, row: Row, tokens: &[u32], past: usize, _wanted: Positions) -> Result<&mut [f32], ModelError> {
        self.run(row, tokens, past).map_err(run_error)??;
        Ok(&mut self.logits)
    }

    fn decode(&mut self, next: &[Next]) -> Result<&mut [f32], ModelError> {
        let mut all = Vec::with_capacity(next.len() * self.shape.vocab);
        for (row, next) in next.iter().enumerate() {
            all.extend_from_slice(self.read(Row(row), &[next.token], next.past, Positions::Last)?);
        }
        self.batch = all;
        Ok(&mut self.batch)
    }

    fn swap(&mut self, (a, _): (Row, usize), (b, _): (Row, usize)) {
        self.rows.swap(a.0, b.0);
    }

    fn copy(&mut self, _from: Row, to: Row, _tokens: usize) -> Result<(), ModelError> {
        self.release(to);
        Err(ModelError::Run("rows cannot be copied".to_owned()))
    }

    fn release(&mut self, row: Row) {
        self.rows[row.0].clear();
    }
}
