//! Files of models.

use muster_worker::encoder::head::dense::{Activation, Dense, DenseShape};
use muster_worker::model::onnx::bounds::Bounds;
use muster_worker::model::onnx::graph::GraphFacts;
use muster_worker::model::onnx::rewrite::choose_positions;
use muster_worker::tensor::pbtxt::{self, Field, Message, Value};
use muster_worker::tensor::settings::Settings;

/// Weights of a dense layer, after three bytes of shape: any bytes are read or refused, never a panic; what is read has
/// the sizes that were told.
pub(super) fn dense_weights(bytes: &[u8]) {
    let Some((&[inputs, outputs, bias], bytes)) = bytes.split_first_chunk() else { return };
    let (inputs, outputs, bias) = (inputs.into(), outputs.into(), bias % 2 == 1);
    let shape = DenseShape { inputs, outputs, bias, activation: Activation::Tanh };
    if let Ok(layer) = Dense::read(bytes, shape) {
        assert_eq!((layer.inputs(), layer.outputs()), (shape.inputs, shape.outputs));
    }
}

/// ONNX files: any bytes give facts or a reason, never a panic.
pub(super) fn onnx_graph(bytes: &[u8]) {
    let _ = GraphFacts::read(bytes);
    let _ = Bounds { folder: None }.check(bytes);
}

/// ONNX files: any bytes are rewritten or kept, never a panic; what was rewritten is not rewritten again.
pub(super) fn rewrite_head(bytes: &[u8]) {
    if let Ok(changed) = choose_positions(bytes).changed {
        assert!(choose_positions(&changed).changed.is_err());
    }
}

/// A model's `config.pbtxt`: no text breaks the reader, and what is read is written alike.
pub(super) fn pbtxt(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = Settings::read("m", text);
    let Ok(message) = pbtxt::parse(text) else { return };
    let again = pbtxt::parse(&message.to_string()).expect("our own words");
    assert_eq!(without_lines(again), without_lines(message));
}

/// The same with every field on no line: what is written anew lies elsewhere.
fn without_lines(message: Message) -> Message {
    let field = |field: Field| {
        let value = match field.value {
            Value::Message(message) => Value::Message(without_lines(message)),
            other => other,
        };
        Field { line: 0, value, ..field }
    };
    Message(message.0.into_iter().map(field).collect())
}
