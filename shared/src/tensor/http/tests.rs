//! Every message survives the way over HTTP, and whatever is wrong with one is named.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::problem::Kind;
use crate::tensor::arbitrary::{self, Elements};
use crate::tensor::{Datatype, InferRequest, InferResponse, Parameter, RequestedOutput, Tensor};

/// A request of JSON, as a server reads it.
fn read(body: impl Into<Vec<u8>>) -> Result<(InferRequest, Wanted), Problem> {
    read_request("m", None, Bytes::from(body.into()), None)
}

fn read_json(body: &Value) -> Result<(InferRequest, Wanted), Problem> {
    read(body.to_string())
}

/// A request with one input.
fn input(input: Value) -> Result<Tensor, Problem> {
    read_json(&json!({ "inputs": [input] })).map(|(mut request, _)| request.inputs.remove(0))
}

/// A request with binary data, whose JSON has one input.
fn binary(input: Value, data: &[u8]) -> Result<Tensor, Problem> {
    let json = json!({ "inputs": [input] }).to_string();
    let body = [json.as_bytes(), data].concat();
    read_request("m", None, body.into(), Some(json.len())).map(|(mut request, _)| request.inputs.remove(0))
}

fn tensor(datatype: Datatype, shape: &[usize], data: &[u8]) -> Tensor {
    let (name, parameters) = ("x".to_owned(), [].into());
    Tensor { name, datatype, shape: shape.to_vec(), parameters, data: Bytes::copy_from_slice(data) }
}

fn response(output: Tensor) -> InferResponse {
    InferResponse {
        model: "m".to_owned(),
        version: String::new(),
        id: String::new(),
        parameters: [].into(),
        outputs: vec![output],
    }
}

fn data_of(output: Tensor) -> Value {
    let body = write_response(&response(output), &Wanted::default()).expect("JSON can say it");
    serde_json::from_slice::<Value>(&body.json).expect("it is JSON")["outputs"][0]["data"].clone()
}

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, Problem>, param: &str, words: &[&str]) {
    let problem = result.expect_err("it is wrong");
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some(param)), "{problem}");
    for word in words {
        assert!(problem.message.contains(word), "`{word}` is not in: {problem}");
    }
}

/// All NaNs are one to JSON.
fn without_payloads(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    for tensor in &mut tensors {
        tensor.data = match tensor.datatype {
            Datatype::Fp32 => each(&tensor.data, |bytes| {
                let number = f32::from_le_bytes(bytes);
                if number.is_nan() { f32::NAN.to_le_bytes() } else { bytes }
            }),
            Datatype::Fp64 => each(&tensor.data, |bytes| {
                let number = f64::from_le_bytes(bytes);
                if number.is_nan() { f64::NAN.to_le_bytes() } else { bytes }
            }),
            _ => continue,
        };
    }
    tensors
}

fn each<const N: usize>(data: &[u8], change: impl Fn([u8; N]) -> [u8; N]) -> Bytes {
    data.as_chunks::<N>().0.iter().flat_map(|bytes| change(*bytes)).collect()
}

proptest! {
    #[test]
    fn a_request_survives_in_binary_form(request in arbitrary::request(Elements::Any)) {
        let body = write_request(&request, Form::Binary).expect("binary data can say everything");
        let length = body.header_length();
        let (read, wanted) = read_request(&request.model, request.version.as_deref(), body.into_bytes(), length)?;
        prop_assert_eq!(wanted, Wanted::all(Form::Binary));
        prop_assert_eq!(read, request);
    }

    #[test]
    fn a_request_survives_in_json(mut request in arbitrary::request(Elements::Json)) {
        let body = write_request(&request, Form::Json).expect("JSON can say it");
        prop_assert_eq!(body.header_length(), None);
        let (read, wanted) = read_request(&request.model, request.version.as_deref(), body.into_bytes(), None)?;
        request.inputs = without_payloads(request.inputs);
        prop_assert_eq!(wanted, Wanted::default());
        prop_assert_eq!(read, request);
    }

    #[test]
    fn an_answer_survives_in_both_forms(response in arbitrary::response(Elements::Json), some in any::<bool>()) {
        let mut wanted = Wanted::all(Form::Json);
        for output in response.outputs.iter().filter(|_| some).step_by(2) {
            wanted.outputs.insert(output.name.clone(), Form::Binary);
        }
        let body = write_response(&response, &wanted).expect("JSON can say it");
        let length = body.header_length();
        let mut read = read_response(body.into_bytes(), length)?;
        read.outputs = without_payloads(read.outputs);
        prop_assert_eq!(read, InferResponse { outputs: without_payloads(response.outputs.clone()), ..response });
    }

    #[test]
    fn an_answer_survives_in_binary_form(response in arbitrary::response(Elements::Any)) {
        let body = write_response(&response, &Wanted::all(Form::Binary)).expect("binary data can say everything");
        let length = body.header_length();
        prop_assert_eq!(read_response(body.into_bytes(), length)?, response);
    }

    #[test]
    fn no_bytes_break_the_reader(body in proptest::collection::vec(any::<u8>(), 0..64), length in proptest::option::of(0..99usize)) {
        let _ = read_request("m", None, body.clone().into(), length);
        let _ = read_response(body.into(), length);
    }

    #[test]
    fn no_json_with_one_wrong_byte_breaks_the_reader(
        request in arbitrary::request(Elements::Json),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut body = write_request(&request, Form::Json).expect("JSON can say it").into_bytes().to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        let _ = read(body);
    }
}

#[test]
fn data_may_be_flat_nested_or_alone_and_stand_before_its_datatype() {
    let expected = tensor(Datatype::Int16, &[2, 2], &[1, 0, 2, 0, 3, 0, 255, 255]);
    for data in ["[1,2,3,-1]", "[[1,2],[3,-1]]", " [ [ 1 , 2 ] ,\n[3,-1] ] "] {
        let body = format!(r#"{{"inputs":[{{"data":{data},"shape":[2,2],"name":"x","datatype":"INT16"}}]}}"#);
        assert_eq!(read(body).expect("it is sound").0.inputs, std::slice::from_ref(&expected));
    }
    for data in [json!(7), json!([7])] {
        let scalar = input(json!({"name": "x", "shape": [], "datatype": "UINT8", "data": data}));
        assert_eq!(scalar, Ok(tensor(Datatype::Uint8, &[], &[7])));
    }
    let empty = input(json!({"name": "x", "shape": [3, 0], "datatype": "FP64", "data": []}));
    assert_eq!(empty, Ok(tensor(Datatype::Fp64, &[3, 0], &[])));
}

#[test]
fn whole_numbers_keep_every_digit_and_floats_their_nearest_value() {
    let numbers = [i64::MAX, i64::MIN, 9_007_199_254_740_993];
    let given = input(json!({"name": "x", "shape": [3], "datatype": "INT64", "data": numbers})).expect("they fit");
    assert_eq!(given.data, numbers.map(i64::to_le_bytes).concat());
    assert_eq!(data_of(given), json!(numbers));
    let number = 0.1 + 0.2;
    let given = input(json!({"name": "x", "shape": [1], "datatype": "FP64", "data": [number]})).expect("it fits");
    assert_eq!(given.data, f64::to_le_bytes(number).to_vec());
    assert_eq!(data_of(tensor(Datatype::Fp32, &[], &0.1f32.to_le_bytes())).to_string(), "[0.1]", "no digits of f64");
}

#[test]
fn floats_that_json_does_not_know_are_texts() {
    let numbers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e38];
    let data = numbers.map(f32::to_le_bytes).concat();
    let said = data_of(tensor(Datatype::Fp32, &[5], &data));
    assert_eq!(said.to_string(), r#"["NaN","Infinity","-Infinity",-0.0,1e+38]"#);
    let heard = input(json!({"name": "x", "shape": [5], "datatype": "FP32", "data": said})).expect("our own words");
    assert_eq!(heard.data, data);
}

#[test]
fn texts_keep_their_escapes() {
    let body =
        r#"{"inputs":[{"name":"x","datatype":"BYTES","shape":[3],"data":["a,]\"b","\u00fc\ud83d\ude00\\",""]}]}"#;
    let data = read(body).expect("three texts").0.inputs.remove(0);
    let elements = crate::tensor::layout::strings(&data.data).collect::<Result<Vec<_>, _>>().expect("sound lengths");
    assert_eq!(elements, ["a,]\"b".as_bytes(), "ü😀\\".as_bytes(), b""]);
    assert_eq!(data_of(data), json!(["a,]\"b", "ü😀\\", ""]));
}

#[test]
fn binary_data_is_not_copied() {
    let json = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}"#;
    let body = Bytes::from([json.as_bytes(), &[1, 2, 3, 4]].concat());
    let (request, _) = read_request("m", Some("3"), body.clone(), Some(json.len())).expect("it is sound");
    assert_eq!(request.inputs[0].data.as_ptr(), body[json.len()..].as_ptr());
    assert_eq!((request.model.as_str(), request.version.as_deref()), ("m", Some("3")));
    assert!(request.inputs[0].parameters.is_empty(), "what is the wire's own is not passed on");
    let sent = write_request(&request, Form::Binary).expect("it is binary").into_pieces().nth(1).expect("one tensor");
    assert_eq!(sent.as_ptr(), body[json.len()..].as_ptr());
}

#[test]
fn a_client_says_of_each_output_how_it_wants_it() {
    let body = json!({
        "id": "7", "inputs": [],
        "parameters": {"binary_data_output": true, "priority": 3, "big": u64::MAX, "half": 0.5},
        "outputs": [{"name": "a", "parameters": {"binary_data": false}}, {"name": "b", "parameters": {"classification": 2}}],
    });
    let (request, wanted) = read_json(&body).expect("it is sound");
    assert_eq!((wanted.form("a"), wanted.form("b")), (Form::Json, Form::Binary));
    let named = |name: &str, classification| RequestedOutput { name: name.to_owned(), classification };
    assert_eq!(request.outputs, [named("a", 0), named("b", 2)]);
    let more = [("big", Parameter::Uint(u64::MAX)), ("half", Parameter::Double(0.5)), ("priority", Parameter::Int(3))];
    assert_eq!(request.parameters, more.map(|(name, value)| (name.to_owned(), value)).into());
    let (request, wanted) = read_json(&json!({"inputs": [], "id": null})).expect("all defaults");
    assert_eq!((request.id.as_str(), wanted), ("", Wanted::all(Form::Json)));
}

#[test]
fn what_is_wrong_with_an_input_is_named() {
    let x = |datatype: &str, shape: Value, data: Value| {
        input(json!({"name": "x", "datatype": datatype, "shape": shape, "data": data}))
    };
    refused(input(json!({"datatype": "FP32", "shape": [1]})), "inputs[0].name", &["is missing"]);
    refused(input(json!({"name": 5})), "inputs[0].name", &["`5`", "a text"]);
    refused(input(json!({"name": "x", "shape": [1]})), "inputs[0].datatype", &["is missing", "`x`", "FP32"]);
    refused(input(json!({"name": "x", "datatype": "FP32"})), "inputs[0].shape", &["is missing"]);
    refused(x("FP8", json!([1]), json!([1])), "inputs[0].datatype", &["`x`", "`FP8`", "FP16"]);
    refused(x("FP32", json!("2"), json!([1])), "inputs[0].shape", &["`\"2\"`", "whole numbers"]);
    refused(x("FP32", json!([1.5]), json!([1])), "inputs[0].shape", &["[1.5]", "whole numbers"]);
    refused(x("FP32", json!([2, -1]), json!([1])), "inputs[0].shape", &["[2, -1]", "below 0"]);
    refused(x("FP32", json!([i64::MAX, 3]), json!([1])), "inputs[0].shape", &["more than any memory"]);
    refused(x("FP32", json!([0, i64::MAX, 3]), json!([])), "inputs[0].shape", &["more than any memory"]);
    refused(x("FP32", json!(vec![1; 65]), json!([1])), "inputs[0].shape", &["65 dimensions", "64"]);
    refused(x("FP32", json!([2, 2]), json!([1, 2, 3])), "inputs[0].data", &["[2, 2]", "4 elements", "has 3"]);
    refused(x("FP32", json!([1]), Value::Null), "inputs[0].data", &["`data` is missing", "binary_data_size"]);
    refused(x("FP32", json!([2]), json!([1, "a"])), "inputs[0].data", &["element 1", "`\"a\"`", "FP32"]);
    refused(x("FP32", json!([1]), json!([1e39])), "inputs[0].data", &["can hold"]);
    refused(x("UINT8", json!([1]), json!([256])), "inputs[0].data", &["`256`", "UINT8"]);
    refused(x("INT32", json!([1]), json!([1.5])), "inputs[0].data", &["`1.5`", "whole number"]);
    refused(x("BOOL", json!([1]), json!([1])), "inputs[0].data", &["true or false"]);
    refused(x("BYTES", json!([1]), json!([1])), "inputs[0].data", &["a text"]);
    refused(x("INT32", json!([1]), json!([{"a": [1]}])), "inputs[0].data", &["element 0"]);
    refused(x("FP16", json!([1]), json!([1])), "inputs[0].data", &["FP16", "binary data"]);
    refused(x("BF16", json!([1]), json!([1])), "inputs[0].data", &["BF16", "binary data"]);
    let shared = json!({"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"shared_memory_region": "r"}});
    refused(input(shared), "inputs[0].parameters", &["shared memory", "`shared_memory_region`"]);
    let list = json!({"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"a": [1]}});
    refused(input(list), "inputs[0].parameters.a", &["`[1]`", "a number or a text"]);
}

#[test]
fn what_is_wrong_with_binary_data_is_named() {
    let x = |size: Value, data: Value| {
        let parameters = json!({"binary_data_size": size});
        json!({"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": parameters, "data": data})
    };
    refused(
        binary(x(json!(20), Value::Null), &[0; 20]),
        "inputs[0].data",
        &["input `x`: shape [2, 3] of FP32 is 24 bytes, and 20 were given"],
    );
    let field = "inputs[0].parameters.binary_data_size";
    refused(binary(x(json!(24), Value::Null), &[0; 20]), field, &["is 24", "20 bytes are left"]);
    refused(binary(x(json!(-1), Value::Null), &[]), field, &["`-1`", "below 0"]);
    refused(binary(x(json!("24"), Value::Null), &[]), field, &["whole number"]);
    refused(binary(x(json!(24), Value::Null), &[0; 25]), "body", &["1 bytes follow"]);
    refused(binary(x(json!(24), json!([1])), &[0; 24]), "inputs[0].data", &["both"]);
    let texts = json!({"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}});
    refused(binary(texts, &[9, 0, 0, 0, 1, 2]), "inputs[0].data", &["element 0", "13 bytes"]);
    refused(read_request("m", None, Bytes::from_static(b"{}"), Some(3)), HEADER_LENGTH, &["is 3", "2 bytes"]);
    refused(header_length(b"many"), HEADER_LENGTH, &["`many`"]);
    refused(header_length(b"0"), HEADER_LENGTH, &["without JSON"]);
    assert_eq!(header_length(b"17"), Ok(17));
}

#[test]
fn what_is_wrong_with_a_request_is_named() {
    refused(read("{"), "body", &["cannot be read", "line 1"]);
    refused(read("[]"), "body", &["an object"]);
    refused(read(b"{\"id\":\"\xff\"}".to_vec()), "body", &["cannot be read"]);
    refused(read("{}"), "inputs", &["is missing"]);
    refused(read(r#"{"inputs":[5]}"#), "body", &["an object that describes a tensor"]);
    refused(read(r#"{"inputs":{}}"#), "body", &["a list of tensors"]);
    refused(read_json(&json!({"inputs": [], "id": 5})), "id", &["`5`", "a text"]);
    refused(read_json(&json!({"inputs": [], "parameters": 5})), "parameters", &["`5`", "an object"]);
    refused(read(r#"{"inputs":[],"parameters":{"a":1e999}}"#), "parameters.a", &["1e999"]);
    let yes = json!({"inputs": [], "parameters": {"binary_data_output": 1}});
    refused(read_json(&yes), "parameters.binary_data_output", &["`1`", "true or false"]);
    let output = |output: Value| read_json(&json!({"inputs": [], "outputs": [output]}));
    refused(output(json!({})), "outputs[0].name", &["is missing"]);
    let many = json!({"name": "y", "parameters": {"classification": "all"}});
    refused(output(many), "outputs[0].parameters.classification", &["all", "whole number"]);
    let shared = json!({"name": "y", "parameters": {"shared_memory_offset": 1}});
    refused(output(shared), "outputs[0].parameters", &["output `y`", "shared memory"]);
    let x = json!({"name": "x", "datatype": "FP32", "shape": [0]});
    refused(read_json(&json!({"inputs": [x, x]})), "inputs[1].name", &["`x`", "twice"]);
    refused(
        read_json(&json!({"inputs": [], "outputs": [{"name": "y"}, {"name": "y"}]})),
        "outputs[1].name",
        &["twice"],
    );
    let many = format!(r#"{{"inputs":[{}{{}}]}}"#, "{},".repeat(100_000));
    refused(read(many), "body", &["more than 1024 tensors"]);
}

#[test]
fn an_answer_that_json_cannot_say_is_refused_with_advice() {
    let write = |output| write_response(&response(output), &Wanted::default());
    let advice = ["output `x`", "as binary data", "`binary_data_output`"];
    refused(write(tensor(Datatype::Fp16, &[1], &[0, 0])), "outputs[0].data", &advice);
    refused(write(tensor(Datatype::Bf16, &[1], &[0, 0])), "outputs[0].data", &advice);
    let texts = tensor(Datatype::Bytes, &[2], &[0, 0, 0, 0, 1, 0, 0, 0, 0xff]);
    refused(write(texts), "outputs[0].data", &["element 1 is not UTF-8"]);
}

#[test]
fn an_answer_without_outputs_is_none() {
    refused(read_response(Bytes::from_static(br#"{"model_name":"m"}"#), None), "outputs", &["is missing"]);
    refused(read_response(Bytes::from_static(br#"{"model_name":5,"outputs":[]}"#), None), "model_name", &["a text"]);
}
