//! Language models whose attention is `GroupQueryAttention`: keys and values are written in place.
//!
//! Past and present of a row are bound to the same tensor `[1, kv_heads, context, head_size]`; the operator sees
//! equal pointers and appends the new columns. Only the sum of the attention mask and its width count, never where
//! its ones are; what lies beyond a row's length is never read.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use super::super::{CausalModel, CausalShape, ModelError, Row};
use super::{CausalIo, as_i64, last_logits, positions, run_error};

/// A language model in the layout of ONNX Runtime GenAI's model builder.
#[derive(Debug)]
pub struct GqaModel {
    /// One binding a row, made when the row is first used; each holds the row's keys and values.
    bindings: Vec<Option<IoBinding>>,
    session: Session,
    io: CausalIo,
    shape: CausalShape,
    logits: Vec<f32>,
}

impl GqaModel {
    /// Wraps a loaded graph.
    pub fn new(session: Session, io: CausalIo, shape: CausalShape) -> Self {
        let bindings = std::iter::repeat_with(|| None).take(shape.rows).collect();
        Self { bindings, session, io, shape, logits: vec![0.0; shape.vocab] }
    }

    /// Binds a row's caches, each tensor as past and as present.
    fn bind(&self) -> ort::Result<IoBinding> {
        let mut binding = self.session.create_binding()?;
        let shape = [1, self.io.kv_heads as i64, self.shape.context as i64, self.io.head_size as i64];
        for cache in &self.io.caches {
            let tensor = Tensor::<f32>::new(&Allocator::default(), shape)?;
            binding.bind_input(&cache.past, &tensor)?;
            binding.bind_output(&cache.present, tensor)?;
        }
        // The graph may give one position or all of them: let the runtime size the logits.
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
        binding.bind_output_to_device("logits", &memory)?;
        Ok(binding)
    }

    fn run(&mut self, row: Row, tokens: &[u32], past: usize) -> ort::Result<Result<(), ModelError>> {
        if self.bindings[row.0].is_none() {
            self.bindings[row.0] = Some(self.bind()?);
        }
        let Some(binding) = &mut self.bindings[row.0] else { unreachable!("bound above") };
        let (new, total) = (tokens.len(), past + tokens.len());
        binding.bind_input("input_ids", &Tensor::from_array(([1, new], as_i64(tokens)))?)?;
        binding.bind_input("attention_mask", &Tensor::from_array(([1, total], vec![1_i64; total]))?)?;
        if self.io.position_ids {
            binding.bind_input("position_ids", &Tensor::from_array(([1, new], positions(past, new)))?)?;
        }
        let outputs = self.session.run_binding(binding)?;
        let (_, logits) = outputs["logits"].try_extract_tensor::<f32>()?;
        Ok(last_logits(logits, &mut self.logits))
    }
}

impl CausalModel for GqaModel {
    fn shape(&self) -> CausalShape {
        self.shape
    }

    fn forward(&mut self, row: Row, tokens: &[u32], past: usize) -> Result<&mut [f32], ModelError> {
        self.run(row, tokens, past).map_err(run_error)??;
        Ok(&mut self.logits)
    }

    /// Keeps the memory: the next sequence of the row writes over it.
    fn release(&mut self, _row: Row) {}
}
