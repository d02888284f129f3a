//! Any request and any answer, for properties.

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::layout::{element_count, push_string};
use super::{Datatype, InferRequest, InferResponse, Parameter, Parameters, RequestedOutput, Tensor};

/// What the tensors of a property may be, so that the wire in question can say it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Elements {
    /// Anything.
    Any,
    /// What typed contents can say: no FP16, no BF16.
    Typed,
    /// What JSON can say: neither those, nor BYTES that are no text. Floats may be infinite; of NaN only that it is one.
    Json,
}

fn name() -> impl Strategy<Value = String> {
    "[a-z\"\\\\ü]{1,6}"
}

fn parameter() -> impl Strategy<Value = Parameter> {
    prop_oneof![
        any::<bool>().prop_map(Parameter::Bool),
        any::<i64>().prop_map(Parameter::Int),
        (i64::MAX as u64 + 1..).prop_map(Parameter::Uint),
        any::<f64>().prop_filter("what both wires can say", |number| number.is_finite()).prop_map(Parameter::Double),
        "\\PC{0,8}".prop_map(Parameter::String),
    ]
}

fn parameters() -> impl Strategy<Value = Parameters> {
    btree_map("[a-z]{1,5}", parameter(), 0..3)
}

fn data(datatype: Datatype, count: usize, elements: Elements) -> BoxedStrategy<Bytes> {
    let json = matches!(elements, Elements::Json);
    match datatype {
        Datatype::Bool => vec(0..=1u8, count).prop_map(Bytes::from).boxed(),
        Datatype::Bytes if json => vec("\\PC{0,6}|[\"\\\\\n]{1,3}", count).prop_map(|texts| strings(&texts)).boxed(),
        Datatype::Bytes => vec(vec(any::<u8>(), 0..6), count).prop_map(|texts| strings(&texts)).boxed(),
        Datatype::Fp32 if json => flat(count, any::<f32>().prop_map(|number| number.to_le_bytes())),
        Datatype::Fp64 if json => flat(count, any::<f64>().prop_map(|number| number.to_le_bytes())),
        other => vec(any::<u8>(), count * other.size().unwrap_or(0)).prop_map(Bytes::from).boxed(),
    }
}

fn flat<const N: usize>(count: usize, element: impl Strategy<Value = [u8; N]> + 'static) -> BoxedStrategy<Bytes> {
    vec(element, count).prop_map(|elements| Bytes::from(elements.concat())).boxed()
}

fn strings<T: AsRef<[u8]>>(elements: &[T]) -> Bytes {
    let mut data = Vec::new();
    assert!(elements.iter().all(|element| push_string(&mut data, element.as_ref())));
    data.into()
}

fn tensors(elements: Elements) -> impl Strategy<Value = Vec<Tensor>> {
    let all = Datatype::ALL.into_iter();
    let datatypes: Vec<Datatype> = match elements {
        Elements::Any => all.collect(),
        _ => all.filter(|datatype| !matches!(datatype, Datatype::Fp16 | Datatype::Bf16)).collect(),
    };
    let tensor = (select(datatypes), vec(0..4usize, 0..4), parameters()).prop_flat_map(move |description| {
        let (datatype, shape, parameters) = description;
        let count = element_count(&shape).expect("it is small");
        data(datatype, count, elements).prop_map(move |data| {
            let (name, shape, parameters) = (String::new(), shape.clone(), parameters.clone());
            Tensor { name, datatype, shape, parameters, data }
        })
    });
    btree_map(name(), tensor, 0..4)
        .prop_map(|tensors| tensors.into_iter().map(|(name, tensor)| Tensor { name, ..tensor }).collect())
}

pub(crate) fn request(elements: Elements) -> impl Strategy<Value = InferRequest> {
    let outputs = btree_map(name(), 0..9usize, 0..3);
    let texts = (name(), option::of("[0-9]{1,3}"), "\\PC{0,8}");
    (texts, parameters(), tensors(elements), outputs).prop_map(|(texts, parameters, inputs, outputs)| InferRequest {
        request_id: String::new(),
        model: texts.0,
        version: texts.1,
        id: texts.2,
        parameters,
        inputs,
        outputs: outputs.into_iter().map(|(name, classification)| RequestedOutput { name, classification }).collect(),
    })
}

pub(crate) fn response(elements: Elements) -> impl Strategy<Value = InferResponse> {
    let texts = (name(), "[0-9]{0,3}", "\\PC{0,8}");
    (texts, parameters(), tensors(elements)).prop_map(|(texts, parameters, outputs)| InferResponse {
        model: texts.0,
        version: texts.1,
        id: texts.2,
        parameters,
        outputs,
    })
}
