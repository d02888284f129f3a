//! Weights of a dense layer: any bytes are read or refused, never a panic; what is read has the sizes that were told.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_worker::encoder::head::dense::{Activation, Dense, DenseShape};

fuzz_target!(|input: (u8, u8, bool, &[u8])| {
    let (inputs, outputs, bias, bytes) = input;
    let shape = DenseShape { inputs: inputs.into(), outputs: outputs.into(), bias, activation: Activation::Tanh };
    if let Ok(layer) = Dense::read(bytes, shape) {
        assert_eq!((layer.inputs(), layer.outputs()), (shape.inputs, shape.outputs));
    }
});
