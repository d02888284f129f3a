//! Encoders: one run over a padded batch.

use std::borrow::Cow;

use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;

use super::super::{EncoderBatch, EncoderModel, EncoderOutput, ModelError};
use super::run_error;

/// Names of an encoder's inputs and output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderIo {
    /// Whether the graph takes an attention mask.
    pub attention_mask: bool,
    /// Whether the graph takes segment numbers.
    pub token_type_ids: bool,
    /// The output to read.
    pub output: String,
}

/// An encoder in ONNX Runtime.
#[derive(Debug)]
pub struct OnnxEncoder {
    session: Session,
    io: EncoderIo,
}

impl OnnxEncoder {
    /// Wraps a loaded graph.
    pub fn new(session: Session, io: EncoderIo) -> Self {
        Self { session, io }
    }

    fn run(&mut self, batch: &EncoderBatch) -> ort::Result<Result<EncoderOutput, ModelError>> {
        let shape = [batch.rows, batch.columns];
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(3);
        inputs.push(("input_ids".into(), Tensor::from_array((shape, batch.ids.clone()))?.into()));
        if self.io.attention_mask {
            inputs.push(("attention_mask".into(), Tensor::from_array((shape, batch.mask.clone()))?.into()));
        }
        if self.io.token_type_ids {
            inputs.push(("token_type_ids".into(), Tensor::from_array((shape, batch.types.clone()))?.into()));
        }
        let outputs = self.session.run(inputs)?;
        let (shape, values) = outputs[self.io.output.as_str()].try_extract_tensor::<f32>()?;
        let (rows, columns) = (batch.rows as i64, batch.columns as i64);
        Ok(match **shape {
            [r, c, width] if r == rows && c == columns && width > 0 => {
                Ok(EncoderOutput::Tokens { values: values.to_vec(), width: width as usize })
            }
            [r, width] if r == rows && width > 0 => {
                Ok(EncoderOutput::Pooled { values: values.to_vec(), width: width as usize })
            }
            _ => Err(ModelError::Run(format!(
                "output `{}` has shape {shape}, expected [{rows}, {columns}, width] or [{rows}, width]",
                self.io.output
            ))),
        })
    }
}

impl EncoderModel for OnnxEncoder {
    fn encode(&mut self, batch: &EncoderBatch) -> Result<EncoderOutput, ModelError> {
        self.run(batch).map_err(run_error)?
    }
}
