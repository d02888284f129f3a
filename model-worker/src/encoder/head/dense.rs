//! Layers that sentence-transformers puts behind its pooling: `2_Dense` and the like.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// What is done to each number that a layer gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// The hyperbolic tangent.
    Tanh,
}

/// What a layer's `config.json` says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenseShape {
    /// Numbers it takes.
    pub inputs: usize,
    /// Numbers it gives.
    pub outputs: usize,
    /// Whether something is added to each.
    pub bias: bool,
    /// What is done to each at last.
    pub activation: Activation,
}

/// A layer with its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// `[outputs, inputs]`.
    weight: Vec<f32>,
    /// `[outputs]`.
    bias: Vec<f32>,
    inputs: usize,
    activation: Activation,
}

impl Dense {
    /// Reads the weights out of the bytes of a `model.safetensors`.
    ///
    /// # Errors
    /// When the bytes are none, or hold other weights than `shape` says; the text says what is wrong.
    pub fn read(bytes: &[u8], shape: DenseShape) -> Result<Self, String> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| format!("no safetensors file ({error})"))?;
        if shape.inputs == 0 || shape.outputs == 0 {
            return Err("its config.json names a layer without inputs or outputs".to_owned());
        }
        let weight = numbers(&tensors, "linear.weight", &[shape.outputs, shape.inputs])?;
        let bias = match shape.bias {
            true => numbers(&tensors, "linear.bias", &[shape.outputs])?,
            false => vec![0.0; shape.outputs],
        };
        Ok(Self { weight, bias, inputs: shape.inputs, activation: shape.activation })
    }

    /// Numbers it takes.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Numbers it gives.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// `activation(weight · vector + bias)`.
    pub(super) fn apply(&self, vector: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(self.inputs).zip(&self.bias);
        let sums =
            rows.map(|(row, bias)| row.iter().zip(vector).map(|(weight, number)| weight * number).sum::<f32>() + bias);
        match self.activation {
            Activation::Identity => sums.collect(),
            Activation::Tanh => sums.map(f32::tanh).collect(),
        }
    }
}

fn numbers(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
    let tensor = tensors.tensor(name).map_err(|_| {
        let names = tensors.names();
        format!(
            "it holds no `{name}`; it holds {}",
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        )
    })?;
    if tensor.shape() != shape {
        return Err(format!("`{name}` has the shape {:?}, and its config.json says {shape:?}", tensor.shape()));
    }
    floats(&tensor).ok_or_else(|| format!("`{name}` is {:?}; take float32, float16 or bfloat16", tensor.dtype()))
}

fn floats(tensor: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = tensor.data();
    let pairs = || bytes.as_chunks::<2>().0.iter().copied();
    Some(match tensor.dtype() {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes).collect(),
        Dtype::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHAPE: DenseShape = DenseShape { inputs: 2, outputs: 1, bias: true, activation: Activation::Identity };

    fn file(dtype: Dtype, weight: &[u8]) -> Vec<u8> {
        let bias = 0.5_f32.to_le_bytes();
        let weight = TensorView::new(dtype, vec![1, 2], weight).expect("a tensor");
        let bias = TensorView::new(Dtype::F32, vec![1], &bias).expect("a tensor");
        safetensors::serialize([("linear.weight", weight), ("linear.bias", bias)], None).expect("a file")
    }

    fn weight() -> Vec<u8> {
        [2.0_f32, -1.0].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn a_layer_is_a_product_and_a_sum() {
        let layer = Dense::read(&file(Dtype::F32, &weight()), SHAPE).expect("a layer");
        assert_eq!(layer.apply(&[3.0, 4.0]), [2.5]);
        let tanh = Dense { activation: Activation::Tanh, ..layer.clone() };
        assert_eq!(tanh.apply(&[3.0, 4.0]), [2.5_f32.tanh()]);
        let half: Vec<u8> = [2.0, -1.0].iter().flat_map(|&number| f16::from_f32(number).to_le_bytes()).collect();
        assert_eq!(Dense::read(&file(Dtype::F16, &half), SHAPE), Ok(layer));
        let unbiased = Dense::read(&file(Dtype::F32, &weight()), DenseShape { bias: false, ..SHAPE }).expect("a layer");
        assert_eq!(unbiased.apply(&[3.0, 4.0]), [2.0]);
    }

    #[test]
    fn weights_that_do_not_fit_the_configuration_are_refused_with_both() {
        let bytes = file(Dtype::F32, &weight());
        let wide = Dense::read(&bytes, DenseShape { inputs: 3, ..SHAPE }).expect_err("too wide");
        assert!(wide.contains("[1, 2]") && wide.contains("[1, 3]"), "{wide}");
        let whole = Dense::read(&file(Dtype::I32, &weight()), SHAPE).expect_err("whole numbers");
        assert!(whole.contains("linear.weight") && whole.contains("I32"), "{whole}");
        let empty = safetensors::serialize::<&str, TensorView<'_>, _>([], None).expect("a file");
        let missing = Dense::read(&empty, SHAPE).expect_err("nothing in it");
        assert!(missing.contains("linear.weight") && missing.contains("nothing"), "{missing}");
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_weights_are_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            header in "[\\[\\]{}:,\"a-z0-9.]{0,60}",
        ) {
            let _ = Dense::read(&bytes, SHAPE);
            let mut framed = (header.len() as u64).to_le_bytes().to_vec();
            framed.extend_from_slice(header.as_bytes());
            framed.append(&mut bytes);
            prop_assert!(Dense::read(&framed, SHAPE).is_err());
        }

        #[test]
        fn a_broken_file_never_panics(at in 0_usize..100, byte in any::<u8>()) {
            let mut bytes = file(Dtype::F32, &weight());
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Dense::read(&bytes, SHAPE);
        }
    }
}
