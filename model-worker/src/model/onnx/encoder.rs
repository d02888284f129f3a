//! Encoders: one run over a padded batch.

use std::borrow::Cow;

use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::{DynValue, Tensor};

use super::super::{EncoderBatch, EncoderModel, EncoderOutput, ModelError};
use super::lent::f16;
use super::{Element, run_error};

/// Whole numbers that a graph takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integer {
    /// 64 bits.
    I64,
    /// 32 bits.
    I32,
}

/// How the places of a text's tokens are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// From 0 on.
    Zero,
    /// From the number behind the padding token's, which padding has itself, as RoBERTa does.
    Behind(u32),
}

/// Names and types of an encoder's inputs and output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderIo {
    /// The token ids.
    pub input_ids: Integer,
    /// The attention mask, if the graph takes one.
    pub attention_mask: Option<Integer>,
    /// Segment numbers, if the graph takes them.
    pub token_type_ids: Option<Integer>,
    /// Places, if the graph takes them.
    pub position_ids: Option<(Integer, Numbering)>,
    /// The output to read.
    pub output: String,
    /// Numbers in the output.
    pub element: Element,
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
        let inputs = self.io.inputs(batch)?;
        let outputs = self.session.run(inputs)?;
        self.io.output(&outputs, batch)
    }
}

impl EncoderIo {
    fn inputs(&self, batch: &EncoderBatch) -> ort::Result<Vec<(Cow<'static, str>, SessionInputValue<'static>)>> {
        let shape = [batch.rows, batch.columns];
        let mut inputs = Vec::with_capacity(4);
        let mut add = |name: &'static str, integer, numbers: Cow<'_, [i64]>| -> ort::Result<()> {
            inputs.push((name.into(), tensor(shape, integer, numbers)?.into()));
            Ok(())
        };
        add("input_ids", self.input_ids, Cow::Borrowed(&batch.ids))?;
        if let Some(integer) = self.attention_mask {
            add("attention_mask", integer, Cow::Borrowed(&batch.mask))?;
        }
        if let Some(integer) = self.token_type_ids {
            add("token_type_ids", integer, Cow::Borrowed(&batch.types))?;
        }
        if let Some((integer, numbering)) = self.position_ids {
            add("position_ids", integer, Cow::Owned(numbering.places(batch)))?;
        }
        Ok(inputs)
    }

    fn output(
        &self,
        outputs: &SessionOutputs<'_>,
        batch: &EncoderBatch,
    ) -> ort::Result<Result<EncoderOutput, ModelError>> {
        let output = &outputs[self.output.as_str()];
        let (shape, values) = match self.element {
            Element::F32 => {
                let (shape, values) = output.try_extract_tensor::<f32>()?;
                (shape, values.to_vec())
            }
            Element::F16 => {
                let (shape, values) = output.try_extract_tensor::<f16>()?;
                (shape, values.iter().map(|number| number.to_f32()).collect())
            }
        };
        let (rows, columns) = (batch.rows as i64, batch.columns as i64);
        Ok(match **shape {
            [r, c, width] if r == rows && c == columns && width > 0 => {
                Ok(EncoderOutput::Tokens { values, width: width as usize })
            }
            [r, width] if r == rows && width > 0 => Ok(EncoderOutput::Pooled { values, width: width as usize }),
            _ => Err(ModelError::Run(format!(
                "output `{}` has shape {shape}, expected [{rows}, {columns}, width] or [{rows}, width]",
                self.output
            ))),
        })
    }
}

impl Numbering {
    fn places(self, batch: &EncoderBatch) -> Vec<i64> {
        let rows = batch.mask.chunks_exact(batch.columns.max(1));
        let numbered = |(place, &mask): (i64, &i64)| match self {
            Self::Zero => place,
            Self::Behind(padding) if mask == 1 => i64::from(padding) + 1 + place,
            Self::Behind(padding) => i64::from(padding),
        };
        rows.flat_map(|row| (0..).zip(row).map(numbered)).collect()
    }
}

fn tensor(shape: [usize; 2], integer: Integer, numbers: Cow<'_, [i64]>) -> ort::Result<DynValue> {
    Ok(match integer {
        Integer::I64 => Tensor::from_array((shape, numbers.into_owned()))?.into_dyn(),
        // Ids and places stay far below what 32 bits hold.
        Integer::I32 => {
            let numbers: Vec<i32> = numbers.iter().map(|&number| number as i32).collect();
            Tensor::from_array((shape, numbers))?.into_dyn()
        }
    })
}

impl EncoderModel for OnnxEncoder {
    fn encode(&mut self, batch: &EncoderBatch) -> Result<EncoderOutput, ModelError> {
        self.run(batch).map_err(run_error)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbered_as_the_model_learned_them() {
        let batch = EncoderBatch {
            rows: 2,
            columns: 3,
            ids: vec![5, 6, 7, 8, 1, 1],
            mask: vec![1, 1, 1, 1, 0, 0],
            types: vec![0; 6],
        };
        assert_eq!(Numbering::Zero.places(&batch), [0, 1, 2, 0, 1, 2]);
        assert_eq!(Numbering::Behind(1).places(&batch), [2, 3, 4, 2, 1, 1]);
    }
}
