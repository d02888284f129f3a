//! Language models whose attention is `GroupQueryAttention`: keys and values are written in place.
//!
//! Past and present of a row are bound to the same tensor `[1, kv_heads, columns, head_size]`; the operator sees
//! equal pointers and appends the new columns. Only the sum of the attention mask and its width count, never where
//! its ones are; what lies beyond a row's length is never read.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use super::super::{CausalModel, CausalShape, ModelError, Next, Positions, Row};
use super::rewrite::{self, Head};
use super::{CausalIo, as_i64, last_logits, positions, run_error};

/// Columns by which a row's memory grows at first; then it doubles.
const COLUMNS: usize = 256;

/// A language model in the layout of ONNX Runtime GenAI's model builder.
#[derive(Debug)]
pub struct GqaModel {
    /// Keys and values of each row, from its first use on.
    rows: Vec<Option<RowCache>>,
    session: Session,
    head: Head,
    io: CausalIo,
    shape: CausalShape,
    logits: Vec<f32>,
    batch: Vec<f32>,
}

/// Keys and values of one row, with the binding that holds them.
#[derive(Debug)]
struct RowCache {
    binding: IoBinding,
    /// `[1, kv_heads, columns, head_size]` each, in the order of `io.caches`.
    tensors: Vec<Tensor<f32>>,
    columns: usize,
}

impl GqaModel {
    /// Wraps a loaded graph.
    pub fn new(session: Session, head: Head, io: CausalIo, shape: CausalShape) -> Self {
        let rows = std::iter::repeat_with(|| None).take(shape.rows).collect();
        Self { rows, session, head, io, shape, logits: vec![0.0; shape.vocab], batch: Vec::new() }
    }

    /// Makes room for so many columns in a row, of which `past` are kept. A whole context is seldom needed and may be
    /// gigabytes, so rows begin small.
    fn reserve(&mut self, row: Row, columns: usize, past: usize) -> ort::Result<()> {
        let old = match &self.rows[row.0] {
            Some(cache) if cache.columns >= columns => return Ok(()),
            _ => self.rows[row.0].take(),
        };
        let doubled = old.as_ref().map_or(0, |cache| cache.columns * 2);
        let columns = columns.next_multiple_of(COLUMNS).max(doubled).min(self.shape.context);
        let mut cache = self.bind(columns)?;
        if let Some(old) = old.filter(|_| past > 0) {
            for (from, to) in old.tensors.iter().zip(&mut cache.tensors) {
                self.copy_columns((from, old.columns), (to, columns), past)?;
            }
        }
        self.rows[row.0] = Some(cache);
        Ok(())
    }

    /// Binds fresh caches, each tensor as past and as present.
    fn bind(&self, columns: usize) -> ort::Result<RowCache> {
        let mut binding = self.session.create_binding()?;
        let shape = [1, self.io.kv_heads as i64, columns as i64, self.io.head_size as i64];
        let mut tensors = Vec::with_capacity(self.io.caches.len());
        for cache in &self.io.caches {
            let mut tensor = Tensor::<f32>::new(&Allocator::default(), shape)?;
            binding.bind_input(&cache.past, &tensor)?;
            binding.bind_output(&cache.present, &mut tensor)?;
            tensors.push(tensor);
        }
        // The graph may give one position or all of them: let the runtime size the logits.
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
        binding.bind_output_to_device("logits", &memory)?;
        Ok(RowCache { binding, tensors, columns })
    }

    /// Copies the first columns of every head.
    fn copy_columns(
        &self,
        (from, from_columns): (&Tensor<f32>, usize),
        (to, to_columns): (&mut Tensor<f32>, usize),
        columns: usize,
    ) -> ort::Result<()> {
        let (_, from) = from.try_extract_tensor::<f32>()?;
        let (_, to) = to.try_extract_tensor_mut::<f32>()?;
        let width = self.io.head_size;
        let heads = from.chunks_exact(from_columns * width).zip(to.chunks_exact_mut(to_columns * width));
        heads.for_each(|(from, to)| to[..columns * width].copy_from_slice(&from[..columns * width]));
        Ok(())
    }

    fn run(&mut self, row: Row, tokens: &[u32], past: usize) -> ort::Result<Result<(), ModelError>> {
        let (new, total) = (tokens.len(), past + tokens.len());
        self.reserve(row, total, past)?;
        let Some(RowCache { binding, .. }) = &mut self.rows[row.0] else { unreachable!("reserved above") };
        binding.bind_input("input_ids", &Tensor::from_array(([1, new], as_i64(tokens)))?)?;
        binding.bind_input("attention_mask", &Tensor::from_array(([1, total], vec![1_i64; total]))?)?;
        if self.io.position_ids {
            binding.bind_input("position_ids", &Tensor::from_array(([1, new], positions(past, new)))?)?;
        }
        if self.head == Head::Positions {
            binding.bind_input(rewrite::POSITIONS, &Tensor::from_array(([1], vec![new as i64 - 1]))?)?;
        }
        let outputs = self.session.run_binding(binding)?;
        let (shape, logits) = outputs["logits"].try_extract_tensor::<f32>()?;
        Ok(last_logits(shape, logits, &mut self.logits))
    }
}

impl CausalModel for GqaModel {
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

    /// Keeps the memory: the next sequence of the row writes over it.
    fn release(&mut self, _row: Row) {}
}
