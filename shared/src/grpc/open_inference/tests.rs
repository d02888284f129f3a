//! Every message survives the way over gRPC, and whatever is wrong with one is named.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;

use super::proto::infer_parameter::ParameterChoice;
use super::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::proto::{InferParameter, InferTensorContents, ModelInferRequest};
use super::*;
use crate::problem::{Kind, Problem};
use crate::tensor::arbitrary::{self, Elements};
use crate::tensor::config::{DynamicBatching, InstanceGroup, StringValue, TensorConfig, VersionPolicy};
use crate::tensor::{
    BatchStatistics, Datatype, Duration, IndexEntry, InferStatistics, ModelConfig, ModelMetadata, ModelState,
    ModelStatistics, ServerMetadata, TensorMetadata,
};

/// Out to bytes and back to the generated type.
fn wire<P: prost::Message + Default>(message: impl Into<P>) -> P {
    P::decode(Bytes::from(message.into().encode_to_vec())).expect("our own bytes")
}

fn input(datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
    let (name, datatype, shape) = ("x".to_owned(), datatype.to_owned(), shape.to_vec());
    InferInputTensor { name, datatype, shape, contents, ..Default::default() }
}

fn message(inputs: Vec<InferInputTensor>) -> ModelInferRequest {
    ModelInferRequest { model_name: "m".to_owned(), inputs, ..Default::default() }
}

fn with_raw(input: InferInputTensor, raw: &[u8]) -> ModelInferRequest {
    ModelInferRequest { raw_input_contents: vec![Bytes::copy_from_slice(raw)], ..message(vec![input]) }
}

#[track_caller]
fn refused(message: ModelInferRequest, param: &str, words: &[&str]) {
    let problem: Problem = read_request(message).expect_err("it is wrong");
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some(param)), "{problem}");
    for word in words {
        assert!(problem.message.contains(word), "`{word}` is not in: {problem}");
    }
}

proptest! {
    #[test]
    fn a_request_survives_with_raw_contents(given in arbitrary::request(Elements::Any)) {
        let message = request(given.clone(), Contents::Raw).expect("raw contents can say everything");
        prop_assert_eq!(read_request(wire(message))?, given);
    }

    #[test]
    fn a_request_survives_with_typed_contents(given in arbitrary::request(Elements::Typed)) {
        let message = request(given.clone(), Contents::Typed).expect("typed contents can say it");
        prop_assert!(message.raw_input_contents.is_empty());
        prop_assert_eq!(read_request(wire(message))?, given);
    }

    #[test]
    fn an_answer_survives_with_raw_contents(given in arbitrary::response(Elements::Any)) {
        prop_assert_eq!(read_response(wire(response(given.clone())))?, given);
    }

    #[test]
    fn an_answer_survives_with_typed_contents(given in arbitrary::response(Elements::Typed)) {
        let message = response_in(given.clone(), Contents::Typed).expect("typed contents can say it");
        prop_assert_eq!(read_response(wire(message))?, given);
    }

    #[test]
    fn no_bytes_break_the_reader(
        given in arbitrary::request(Elements::Typed),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = request(given, Contents::Typed).expect("typed contents can say it").encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(message) = ModelInferRequest::decode(Bytes::from(bytes)) {
            let _ = read_request(message);
        }
    }
}

#[test]
fn raw_contents_are_not_copied() {
    let given = with_raw(input("FP32", &[1], None), &[1, 2, 3, 4]);
    let bytes = Bytes::from(given.encode_to_vec());
    let read = read_request(ModelInferRequest::decode(bytes.clone()).expect("our own bytes")).expect("it is sound");
    let whole = bytes.as_ptr_range();
    assert!(whole.contains(&read.inputs[0].data.as_ptr()), "the tensor is a piece of the message");
}

#[test]
fn what_is_wrong_with_contents_is_named() {
    let floats = |count| Some(InferTensorContents { fp32_contents: vec![1.0; count], ..Default::default() });
    let whole = |numbers: &[i32]| Some(InferTensorContents { int_contents: numbers.to_vec(), ..Default::default() });
    let at = "inputs[0].contents";
    refused(message(vec![input("FP32", &[2], floats(3))]), at, &["[2]", "`fp32_contents` has 3"]);
    refused(message(vec![input("FP32", &[1], whole(&[1]))]), at, &["`int_contents`", "`fp32_contents`"]);
    refused(message(vec![input("INT8", &[2], whole(&[1, 128]))]), at, &["element 1 is 128", "INT8"]);
    refused(message(vec![input("FP16", &[1], floats(1))]), at, &["FP16", "raw contents"]);
    refused(message(vec![input("FP32", &[1], None)]), at, &["neither"]);
    refused(with_raw(input("FP32", &[1], floats(1)), &[0; 4]), at, &["one of them must go"]);
    let empty = read_request(message(vec![input("INT64", &[0], None)])).expect("nothing is missing");
    assert!(empty.inputs[0].data.is_empty());
}

#[test]
fn what_is_wrong_with_a_request_is_named() {
    let six = input("FP32", &[2, 3], None);
    let words = "input `x`: shape [2, 3] of FP32 is 24 bytes, and 20 were given";
    refused(with_raw(six.clone(), &[0; 20]), "inputs[0].data", &[words]);
    let two = ModelInferRequest { inputs: vec![six.clone(), six], ..with_raw(input("FP32", &[1], None), &[0; 4]) };
    refused(two, "raw_input_contents", &["1 entries", "2 inputs"]);
    refused(message(vec![input("fp32", &[0], None)]), "inputs[0].datatype", &["`fp32`", "FP32"]);
    refused(message(vec![input("FP32", &[-1], None)]), "inputs[0].shape", &["[-1]", "below 0"]);
    refused(message(vec![input("FP32", &[i64::MAX, 8], None)]), "inputs[0].shape", &["any memory"]);
    let nameless = InferInputTensor { name: String::new(), ..input("FP32", &[0], None) };
    refused(message(vec![nameless]), "inputs[0].name", &["is missing"]);
    refused(message(vec![input("FP32", &[0], None); 2]), "inputs[1].name", &["twice"]);
    refused(message(vec![input("FP32", &[0], None); 2000]), "inputs", &["2000 inputs", "1024"]);
    refused(ModelInferRequest::default(), "model_name", &["is missing"]);
    refused(with_raw(input("BYTES", &[1], None), &[9, 0, 0, 0, 1]), "inputs[0].data", &["element 0", "13 bytes"]);
}

#[test]
fn what_is_wrong_with_parameters_is_named() {
    let parameter = |choice| InferParameter { parameter_choice: choice };
    let given =
        |choice| ModelInferRequest { parameters: [("p".to_owned(), parameter(choice))].into(), ..message(Vec::new()) };
    refused(given(None), "parameters.p", &["has no value"]);
    refused(given(Some(ParameterChoice::DoubleParam(f64::NAN))), "parameters.p", &["is not finite"]);
    let output = |name: &str, key: &str, choice| ModelInferRequest {
        outputs: vec![InferRequestedOutputTensor {
            name: name.to_owned(),
            parameters: [(key.to_owned(), parameter(Some(choice)))].into(),
        }],
        ..message(Vec::new())
    };
    let below = output("y", "classification", ParameterChoice::Int64Param(-1));
    refused(below, "outputs[0].parameters.classification", &["whole number"]);
    let shared = output("y", "shared_memory_region", ParameterChoice::StringParam("r".to_owned()));
    refused(shared, "outputs[0].parameters", &["shared memory"]);
    refused(output("", "a", ParameterChoice::BoolParam(true)), "outputs[0].name", &["is missing"]);
}

#[test]
fn metadata_survives() {
    let server = ServerMetadata { name: "muster".into(), version: "1".into(), extensions: vec!["a".into()] };
    assert_eq!(ServerMetadata::from(wire::<proto::ServerMetadataResponse>(server.clone())), server);
    let tensor = |datatype| TensorMetadata { name: "x".into(), datatype, shape: vec![-1, 3] };
    let model = ModelMetadata {
        name: "m".into(),
        versions: vec!["1".into(), "2".into()],
        platform: "onnxruntime_onnx".into(),
        inputs: Datatype::ALL.map(tensor).to_vec(),
        outputs: vec![tensor(Datatype::Bf16)],
    };
    assert_eq!(wire::<proto::ModelMetadataResponse>(model.clone()).try_into(), Ok(model));
    for state in [ModelState::Ready, ModelState::Unavailable, ModelState::Loading, ModelState::Unloading] {
        let entry = IndexEntry { name: "m".into(), version: "1".into(), state, reason: "why".into() };
        assert_eq!(wire::<proto::repository_index_response::ModelIndex>(entry.clone()).try_into(), Ok(entry));
    }
}

#[test]
fn a_configuration_survives() {
    let tensor = |label: &'static str| {
        move |data_type| TensorConfig { name: "x".into(), data_type, dims: vec![-1], label_filename: label.into() }
    };
    let policies = [
        VersionPolicy::Latest { num_versions: 2 },
        VersionPolicy::All {},
        VersionPolicy::Specific { versions: vec![1, 3] },
    ];
    for version_policy in policies {
        let config = ModelConfig {
            name: "m".into(),
            platform: "p".into(),
            backend: "b".into(),
            version_policy,
            max_batch_size: 8,
            input: Datatype::ALL.map(tensor("")).to_vec(),
            output: Datatype::ALL.map(tensor("labels.txt")).to_vec(),
            instance_group: vec![InstanceGroup { name: "g".into(), kind: "KIND_CPU".into(), count: 2 }],
            default_model_filename: "model.onnx".into(),
            dynamic_batching: Some(DynamicBatching {
                preferred_batch_size: vec![4, 8],
                max_queue_delay_microseconds: 100,
            }),
            parameters: [("k".to_owned(), StringValue { string_value: "v".into() })].into(),
        };
        assert_eq!(wire::<proto::ModelConfig>(config.clone()).try_into(), Ok(config));
    }
}

#[test]
fn statistics_survive() {
    let spent = |count| Duration { count, ns: count * 10 };
    let statistics = ModelStatistics {
        name: "m".into(),
        version: "1".into(),
        last_inference: 3,
        inference_count: 4,
        execution_count: 5,
        inference_stats: InferStatistics {
            success: spent(1),
            fail: spent(2),
            queue: spent(3),
            compute_input: spent(4),
            compute_infer: spent(5),
            compute_output: spent(6),
        },
        batch_stats: vec![BatchStatistics {
            batch_size: 8,
            compute_input: spent(7),
            compute_infer: spent(8),
            compute_output: spent(9),
        }],
    };
    assert_eq!(ModelStatistics::from(wire::<proto::ModelStatistics>(statistics.clone())), statistics);
}
