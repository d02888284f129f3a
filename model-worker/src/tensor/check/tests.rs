use bytes::Bytes;
use muster_shared::problem::Kind;

use super::*;
use crate::model::tensor::Dimension;

fn port(name: &str, datatype: Datatype, sizes: &[i64]) -> Port {
    let dimension = |&size: &i64| Dimension { size: usize::try_from(size).ok(), symbol: None };
    Port { name: name.to_owned(), datatype, dimensions: Some(sizes.iter().map(dimension).collect()), required: true }
}

fn rules() -> Rules {
    let inputs = vec![
        port("a", Datatype::Fp32, &[-1, 3]),
        port("b", Datatype::Bytes, &[-1]),
        Port { required: false, ..port("c", Datatype::Bool, &[]) },
    ];
    let outputs = vec![port("y", Datatype::Fp32, &[-1, 3]), port("z", Datatype::Bytes, &[-1])];
    Rules { ports: Ports { inputs, outputs }, max_batch_size: None, rows: false }
}

fn tensor(name: &str, datatype: Datatype, shape: &[usize], data: &[u8]) -> Tensor {
    let data = Bytes::copy_from_slice(data);
    Tensor { name: name.to_owned(), datatype, shape: shape.to_vec(), parameters: Parameters::new(), data }
}

fn good() -> InferRequest {
    InferRequest {
        inputs: vec![
            tensor("b", Datatype::Bytes, &[1], b"\x02\0\0\0hi"),
            tensor("a", Datatype::Fp32, &[2, 3], &[0; 24]),
        ],
        ..InferRequest::default()
    }
}

/// The problem with a request that differs from a good one.
fn problem(rules: &Rules, change: impl FnOnce(&mut InferRequest)) -> (String, String) {
    let mut request = good();
    change(&mut request);
    let problem = rules.check(request).expect_err("it does not fit");
    assert_eq!(problem.kind, Kind::Invalid);
    (problem.param.expect("the field at fault"), problem.message)
}

#[test]
fn inputs_come_in_any_order_and_optional_ones_may_be_left_out() {
    let checked = rules().check(good()).expect("it fits");
    assert_eq!(checked.inputs.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(checked.wanted.iter().map(|wanted| wanted.place).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((checked.rows, checked.timeout, checked.priority), (None, None, 1));
}

#[test]
fn whatever_does_not_fit_is_named_with_what_was_given_and_what_was_expected() {
    let wanted = |name: &str, classification| RequestedOutput { name: name.to_owned(), classification };
    type Change = Box<dyn FnOnce(&mut InferRequest)>;
    let cases: Vec<(Change, &str, &[&str])> = vec![
        (Box::new(|r| r.inputs[0].name = "q".into()), "inputs[0].name", &["`q`", "a, b, c"]),
        (Box::new(|r| r.inputs[0].name = "a".into()), "inputs[0].datatype", &["BYTES", "FP32"]),
        (Box::new(|r| r.inputs.push(r.inputs[1].clone())), "inputs[2].name", &["`a`", "twice"]),
        (Box::new(|r| drop(r.inputs.pop())), "inputs", &["`a` is missing", "a, b, c"]),
        (Box::new(|r| r.inputs[1].datatype = Datatype::Int32), "inputs[1].datatype", &["INT32", "expected FP32"]),
        (Box::new(|r| r.inputs[1].shape = vec![2, 4]), "inputs[1].shape", &["`a`", "[2, 4]", "[-1, 3]"]),
        (Box::new(|r| r.inputs[1].shape = vec![6]), "inputs[1].shape", &["[6]", "[-1, 3]"]),
        (Box::new(|r| r.inputs[1].shape = vec![3, 3]), "inputs[1].data", &["is 36 bytes", "24 were given"]),
        (
            Box::new(|r| r.inputs[1].shape = vec![usize::MAX, 3]),
            "inputs[1].data",
            &["more elements than can be counted"],
        ),
        (Box::new(|r| r.inputs[0].shape = vec![2]), "inputs[0].data", &["has 2 elements", "hold 1"]),
        (
            Box::new(|r| r.inputs[0].data = Bytes::from_static(b"\x09\0\0\0hi")),
            "inputs[0].data",
            &["element 0 of BYTES needs 13 bytes"],
        ),
        (Box::new(|r| r.inputs[0].data = Bytes::from_static(b"\x02\0\0\0\xff\xfe")), "inputs[0].data", &["UTF-8"]),
        (Box::new(|r| r.inputs[0].data = Bytes::from_static(b"\x02\0\0\0a\0")), "inputs[0].data", &["zero byte"]),
        (
            Box::new(|r| r.inputs.push(tensor("c", Datatype::Bool, &[], &[7]))),
            "inputs[2].data",
            &["byte 0 is 7", "0 or 1"],
        ),
        (Box::new(move |r| r.outputs = vec![wanted("q", 0)]), "outputs[0].name", &["`q`", "y, z"]),
        (Box::new(move |r| r.outputs = vec![wanted("y", 0), wanted("y", 1)]), "outputs[1].name", &["twice"]),
        (Box::new(move |r| r.outputs = vec![wanted("z", 1)]), "outputs[0].classification", &["BYTES"]),
        (
            Box::new(|r| drop(r.parameters.insert("timeout".into(), Parameter::Int(-1)))),
            "parameters.timeout",
            &["-1", "microseconds"],
        ),
        (
            Box::new(|r| drop(r.parameters.insert("priority".into(), Parameter::Bool(true)))),
            "parameters.priority",
            &["true"],
        ),
    ];
    for (change, param, words) in cases {
        let (named, message) = problem(&rules(), change);
        assert_eq!(named, param, "{message}");
        words.iter().for_each(|word| assert!(message.contains(word), "{message} lacks {word}"));
    }
}

#[test]
fn declared_batches_have_a_limit_and_one_size() {
    let ports = Ports {
        inputs: vec![port("a", Datatype::Uint8, &[-1, 1]), port("b", Datatype::Uint8, &[-1])],
        outputs: vec![port("y", Datatype::Uint8, &[-1])],
    };
    let rules = Rules { ports, max_batch_size: Some(4), rows: true };
    let request = |a: usize, b: usize| InferRequest {
        inputs: vec![
            tensor("a", Datatype::Uint8, &[a, 1], &vec![0; a]),
            tensor("b", Datatype::Uint8, &[b], &vec![0; b]),
        ],
        ..InferRequest::default()
    };
    assert_eq!(rules.check(request(4, 4)).expect("it fits").rows, Some(4));
    let large = rules.check(request(5, 5)).expect_err("too large");
    assert_eq!(large.param.as_deref(), Some("inputs[0].shape"));
    assert!(large.message.contains('5') && large.message.contains("at most 4"), "{large}");
    let uneven = rules.check(request(2, 3)).expect_err("two sizes");
    assert!(uneven.message.contains("`b` has 3") && uneven.message.contains("`a` has 2"), "{uneven}");
    let inferred = Rules { max_batch_size: None, ..rules };
    assert_eq!(inferred.check(request(2, 3)).expect("the graph's affair").rows, None);
}

#[test]
fn a_hundred_thousand_inputs_are_refused_at_the_first() {
    let inputs = (0..100_000).map(|number| tensor(&format!("x{number}"), Datatype::Fp32, &[0, 3], &[])).collect();
    let problem = rules().check(InferRequest { inputs, ..InferRequest::default() }).expect_err("no such inputs");
    assert_eq!(problem.param.as_deref(), Some("inputs[0].name"));
}

#[test]
fn an_empty_tensor_stands_for_no_more_than_some_memory() {
    let mut rules = rules();
    rules.ports.inputs[0] = port("a", Datatype::Fp32, &[-1, -1]);
    let with = |shape: &[usize]| {
        let mut request = good();
        request.inputs[1] = tensor("a", Datatype::Fp32, shape, &[]);
        rules.check(request).map(drop).map_err(|problem| (problem.param, problem.message))
    };
    with(&[0, 4096]).expect("a usual empty batch");
    let (param, message) = with(&[0, 1 << 30]).expect_err("a graph could make 2^30 positions of it");
    assert_eq!(param.as_deref(), Some("inputs[1].shape"));
    assert!(message.contains("1073741824") && message.contains(&EMPTY.to_string()), "{message}");
}

#[test]
fn more_classes_than_a_client_can_use_are_refused() {
    let wanted = RequestedOutput { name: "y".to_owned(), classification: CLASSES + 1 };
    let (param, message) = problem(&rules(), |request| request.outputs = vec![wanted]);
    assert_eq!(param, "outputs[0].classification");
    assert!(message.contains(&CLASSES.to_string()), "{message}");
}
