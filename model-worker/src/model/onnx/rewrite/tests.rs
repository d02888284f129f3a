use proptest::prelude::*;

use super::super::graph::GraphFacts;
use super::super::wire::{fields, message, push_bytes, push_number};
use super::*;

const CHAT: &str = "demo/chat/model.onnx";
const CONCAT: &str = "../tests/models/demo-concat/onnx/model.onnx";

fn file(name: &str) -> Vec<u8> {
    std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// A node `operator(inputs) -> output`; an operator with a dot is one of ONNX Runtime's.
fn node(operator: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut node = Vec::new();
    inputs.iter().for_each(|input| push_bytes(&mut node, 1, input.as_bytes()));
    push_bytes(&mut node, 2, output.as_bytes());
    let (operator, domain) = operator.strip_prefix("ms.").map_or((operator, ""), |own| (own, "com.microsoft"));
    push_bytes(&mut node, 4, operator.as_bytes());
    attributes.iter().for_each(|attribute| push_bytes(&mut node, 5, attribute));
    push_bytes(&mut node, 7, domain.as_bytes());
    message(1, &node)
}

fn axis(axis: u64) -> Vec<u8> {
    let mut attribute = message(1, b"axis");
    push_number(&mut attribute, 3, axis);
    attribute
}

/// A weight of floats, without its numbers.
fn weight(name: &str, shape: &[u64]) -> Vec<u8> {
    let mut tensor = Vec::new();
    shape.iter().for_each(|size| push_number(&mut tensor, 1, *size));
    push_number(&mut tensor, 2, 1);
    push_bytes(&mut tensor, 8, name.as_bytes());
    message(5, &tensor)
}

/// A constant of whole numbers; `shape` is empty for a scalar.
fn whole(name: &str, shape: &[u64], number: i64) -> Vec<u8> {
    let mut tensor = Vec::new();
    shape.iter().for_each(|size| push_number(&mut tensor, 1, *size));
    push_number(&mut tensor, 2, 7);
    push_bytes(&mut tensor, 8, name.as_bytes());
    push_bytes(&mut tensor, 9, &number.to_le_bytes());
    message(5, &tensor)
}

/// An output (12) or an inner tensor (13) with a shape; `None` is a size that is only known when running.
fn value(field: u64, name: &str, shape: &[Option<u64>]) -> Vec<u8> {
    let mut dimensions = Vec::new();
    for size in shape {
        let mut dimension = Vec::new();
        match size {
            Some(size) => push_number(&mut dimension, 1, *size),
            None => push_bytes(&mut dimension, 2, b"some"),
        }
        push_bytes(&mut dimensions, 1, &dimension);
    }
    let mut tensor = Vec::new();
    push_number(&mut tensor, 1, 1);
    push_bytes(&mut tensor, 2, &dimensions);
    let mut value = message(1, name.as_bytes());
    push_bytes(&mut value, 2, &message(1, &tensor));
    message(field, &value)
}

const ALL: &[Option<u64>] = &[None, None, Some(32)];
const ONE: &[Option<u64>] = &[None, Some(1), Some(32)];

/// A model whose `hidden` comes from a norm, with logits of the shape.
fn model(logits: &[Option<u64>], parts: &[Vec<u8>]) -> Vec<u8> {
    let mut graph = node("LayerNormalization", &["embedded", "norm"], "hidden", &[]);
    parts.iter().for_each(|part| graph.extend_from_slice(part));
    for part in [weight("norm", &[8]), weight("head", &[8, 32]), value(12, "logits", logits)] {
        graph.extend_from_slice(&part);
    }
    let mut model = Vec::new();
    push_number(&mut model, 1, 10);
    push_bytes(&mut model, 7, &graph);
    push_bytes(&mut model, 2, b"an exporter");
    model
}

fn changed(bytes: &[u8]) -> Vec<u8> {
    choose_positions(bytes).changed.expect("a head that can be cut")
}

/// Operators of a model with their inputs, `operator(a, b)` each.
fn operators(bytes: &[u8]) -> Vec<String> {
    let model = fields(bytes).unwrap();
    let graph = model.iter().find(|field| field.number == 7).unwrap();
    let graph = Graph::read(graph.value.bytes()).unwrap();
    let text = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
    let nodes = graph.nodes.iter();
    nodes
        .map(|node| {
            let inputs: Vec<_> = node.inputs.iter().map(|name| text(name)).collect();
            format!("{}({})", text(node.operator), inputs.join(", "))
        })
        .collect()
}

#[test]
fn the_head_of_both_layouts_gets_its_positions() {
    for (name, own) in [(CHAT, Head::Last), (CONCAT, Head::All)] {
        let bytes = file(name);
        assert_eq!(choose_positions(&bytes).own, own, "{name}");
        let facts = GraphFacts::read(&changed(&bytes)).unwrap();
        let positions = &facts.inputs[POSITIONS];
        assert_eq!((positions.element, &positions.shape[..]), (7, &[None][..]), "{name}");
        assert_eq!(facts.outputs["logits"].shape, [None, None, Some(2048)], "{name}");
    }
}

#[test]
fn a_graph_is_not_changed_twice() {
    for name in [CHAT, CONCAT] {
        let again = choose_positions(&changed(&file(name)));
        assert!(again.changed.expect_err("it has the input").contains(POSITIONS));
    }
}

#[test]
fn all_that_is_not_the_head_stays_byte_for_byte() {
    let bytes = file(CONCAT);
    let after = changed(&bytes);
    let graph = |bytes: &[u8]| fields(bytes).unwrap().into_iter().find(|field| field.number == 7).unwrap().range;
    let (old, new) = (graph(&bytes), graph(&after));
    assert_eq!((&bytes[..old.start], &bytes[old.end..]), (&after[..new.start], &after[new.end..]));

    let parts = |bytes: &[u8]| -> std::collections::HashSet<Vec<u8>> {
        let model = fields(bytes).unwrap();
        let graph = model.iter().find(|field| field.number == 7).unwrap().value.bytes();
        fields(graph).unwrap().into_iter().map(|field| graph[field.range].to_vec()).collect()
    };
    let (old, new) = (parts(&bytes), parts(&after));
    // The head and the declared logits go; these two, the Gather and the new input come.
    assert_eq!((old.difference(&new).count(), new.difference(&old).count()), (2, 4));
}

#[test]
fn the_activation_is_cut_for_the_head_alone() {
    let head = node("MatMul", &["hidden", "head"], "logits", &[]);
    let other = node("Identity", &["hidden"], "hidden_states", &[]);
    assert_eq!(
        operators(&changed(&model(ALL, &[head, other]))),
        [
            "LayerNormalization(embedded, norm)",
            "Gather(hidden, logits_positions)",
            "MatMul(muster/head_hidden, head)",
            "Identity(hidden)"
        ]
    );
}

#[test]
fn a_head_is_found_behind_bias_cast_and_soft_capping() {
    let parts = [
        node("ms.MatMulNBits", &["hidden", "packed", "scales"], "raw", &[]),
        node("Cast", &["raw"], "float", &[]),
        node("Add", &["bias", "float"], "biased", &[]),
        node("Div", &["biased", "cap"], "small", &[]),
        node("Tanh", &["small"], "tanh", &[]),
        node("Mul", &["tanh", "cap"], "logits", &[]),
        weight("bias", &[32]),
        weight("cap", &[]),
        value(13, "raw", ALL),
        value(13, "hidden", &[None, None, Some(8)]),
    ];
    let after = changed(&model(ALL, &parts));
    assert!(operators(&after).contains(&"MatMulNBits(muster/head_hidden, packed, scales)".to_owned()));
    let graph = fields(&after).unwrap().into_iter().find(|field| field.number == 7).unwrap();
    let graph = Graph::read(graph.value.bytes()).unwrap();
    let infos: Vec<_> = graph.value_infos.iter().map(|info| info.name).collect();
    assert_eq!(infos, [b"hidden"], "the shape of `raw` is no longer so");
}

#[test]
fn a_head_that_was_cut_to_the_last_position_is_opened_again() {
    let head = |input: &str| node("MatMul", &[input, "head"], "logits", &[]);
    let ways = [
        vec![
            node("Gather", &["hidden", "last"], "flat", &[axis(1)]),
            node("Unsqueeze", &["flat", "one"], "cut", &[]),
            head("cut"),
            whole("last", &[], -1),
            whole("one", &[1], 1),
        ],
        vec![node("Gather", &["hidden", "last"], "cut", &[axis(1)]), head("cut"), whole("last", &[1], -1)],
        vec![
            node("Slice", &["hidden", "last", "end", "one"], "cut", &[]),
            head("cut"),
            whole("last", &[1], -1),
            whole("end", &[1], i64::MAX),
            whole("one", &[1], 1),
        ],
    ];
    for way in ways {
        let bytes = model(ONE, &way);
        assert_eq!(choose_positions(&bytes).own, Head::Last);
        let operators = operators(&changed(&bytes));
        assert!(operators.contains(&"Gather(hidden, logits_positions)".to_owned()), "{operators:?}");
    }
}

#[test]
fn a_graph_whose_head_cannot_be_cut_is_kept() {
    let matmul = node("MatMul", &["hidden", "head"], "logits", &[]);
    let cases = [
        ("goes elsewhere", ALL, vec![matmul.clone(), node("Neg", &["logits"], "other", &[])]),
        ("is not known", ALL, vec![node("Softmax", &["hidden"], "logits", &[])]),
        ("no matrix", ALL, vec![node("MatMul", &["hidden", "hidden"], "logits", &[])]),
        ("Gemm", ALL, vec![node("Gemm", &["hidden", "head"], "logits", &[])]),
        ("is not known", ALL, vec![node("Mul", &["product", "scale"], "logits", &[])]),
        ("2 dimensions", &[None, Some(32)], vec![matmul.clone()]),
        ("cut the head", ONE, vec![matmul]),
    ];
    for (reason, logits, parts) in cases {
        let outcome = choose_positions(&model(logits, &parts));
        let kept = outcome.changed.expect_err(reason);
        assert!(kept.contains(reason), "{kept}");
        assert_eq!(outcome.own, if logits == ONE { Head::Last } else { Head::All });
    }
    assert!(choose_positions(b"no model").changed.is_err());
}

/// `DynamicQuantizeLinear(from)` gives `quantised`, `scale` and `zero`.
fn quantise(from: &str) -> Vec<u8> {
    let mut quantiser = message(1, from.as_bytes());
    for (field, name) in [(2, "quantised"), (2, "scale"), (2, "zero"), (4, "DynamicQuantizeLinear")] {
        push_bytes(&mut quantiser, field, name.as_bytes());
    }
    message(1, &quantiser)
}

/// The head of an int8 export, as ONNX Runtime's `quantize_dynamic` writes it.
fn int8_head(from: &str) -> Vec<Vec<u8>> {
    vec![
        quantise(from),
        node("Mul", &["scale", "scales"], "both", &[]),
        node("MatMulInteger", &["quantised", "head", "zero", "zeros"], "product", &[]),
        node("Cast", &["product"], "float", &[]),
        node("Mul", &["float", "both"], "logits", &[]),
        weight("scales", &[32]),
        weight("zeros", &[32]),
    ]
}

#[test]
fn an_int8_head_is_cut_before_its_activation_is_quantised() {
    let mut parts = int8_head("hidden");
    parts.extend([value(13, "quantised", &[None, None, Some(8)]), value(13, "both", &[Some(32)])]);
    let after = changed(&model(ALL, &parts));
    assert_eq!(
        operators(&after),
        [
            "LayerNormalization(embedded, norm)",
            "Gather(hidden, logits_positions)",
            "DynamicQuantizeLinear(muster/head_hidden)",
            "Mul(scale, scales)",
            "MatMulInteger(quantised, head, zero, zeros)",
            "Cast(product)",
            "Mul(float, both)"
        ]
    );
    let graph = fields(&after).unwrap().into_iter().find(|field| field.number == 7).unwrap();
    let graph = Graph::read(graph.value.bytes()).unwrap();
    let infos: Vec<_> = graph.value_infos.iter().map(|info| info.name).collect();
    assert_eq!(infos, [b"both"], "the shape of `quantised` is no longer so");
}

#[test]
fn an_int8_head_is_cut_with_a_bias_in_a_fused_form_and_after_a_cut_to_the_last_position() {
    let mut biased = int8_head("hidden");
    biased[4] = node("Mul", &["both", "float"], "scaled", &[]);
    biased.extend([node("Add", &["scaled", "bias"], "logits", &[]), weight("bias", &[32])]);
    let one_by_one = [
        quantise("hidden"),
        node("MatMulInteger", &["quantised", "head"], "product", &[]),
        node("Cast", &["product"], "float", &[]),
        node("Mul", &["float", "scale"], "small", &[]),
        node("Mul", &["small", "scales"], "logits", &[]),
        weight("scales", &[32]),
    ];
    let to_float = ["quantised", "head", "scale", "scales", "zero", "zeros"];
    let fused = [quantise("hidden"), node("ms.MatMulIntegerToFloat", &to_float, "logits", &[])];
    for way in [&biased[..], &one_by_one, &fused] {
        let operators = operators(&changed(&model(ALL, way)));
        assert_eq!(operators[1], "Gather(hidden, logits_positions)");
        assert_eq!(operators[2], "DynamicQuantizeLinear(muster/head_hidden)");
    }

    let whole_product = node("ms.DynamicQuantizeMatMul", &["hidden", "head", "scales"], "logits", &[]);
    let after = operators(&changed(&model(ALL, &[whole_product])));
    assert_eq!(after[2], "DynamicQuantizeMatMul(muster/head_hidden, head, scales)");

    let mut pruned = vec![node("Gather", &["hidden", "last"], "cut", &[axis(1)]), whole("last", &[1], -1)];
    pruned.extend(int8_head("cut"));
    let after = operators(&changed(&model(ONE, &pruned)));
    assert_eq!(after[2..4], ["Gather(hidden, logits_positions)", "DynamicQuantizeLinear(muster/head_hidden)"]);
}

#[test]
fn an_int8_head_that_shares_its_quantised_activation_is_kept() {
    let with = |part: Vec<u8>| [int8_head("hidden"), vec![part]].concat();
    let mut of_other = int8_head("hidden");
    of_other[0] = node("QuantizeLinear", &["hidden", "scale", "zero"], "quantised", &[]);
    of_other[1] = node("Identity", &["scales"], "both", &[]);
    let mut no_matrix = int8_head("hidden");
    no_matrix[2] = node("MatMulInteger", &["quantised", "quantised"], "product", &[]);
    let cases = [
        ("goes elsewhere", with(node("MatMulInteger", &["quantised", "head", "zero"], "other", &[]))),
        ("goes elsewhere", with(node("Neg", &["scale"], "other", &[]))),
        ("goes elsewhere", with(node("Neg", &["both"], "other", &[]))),
        ("goes elsewhere", with(value(12, "quantised", &[None, None, Some(8)]))),
        ("quantised in a way", of_other),
        ("no matrix", no_matrix),
    ];
    for (reason, parts) in cases {
        let kept = choose_positions(&model(ALL, &parts)).changed.expect_err(reason);
        assert!(kept.contains(reason), "{kept}");
    }
}

fn small() -> Vec<u8> {
    let parts = [
        node("Slice", &["hidden", "last", "end", "one"], "cut", &[]),
        node("MatMul", &["cut", "head"], "raw", &[]),
        node("Add", &["raw", "bias"], "logits", &[]),
        weight("bias", &[32]),
        whole("last", &[1], -1),
        whole("end", &[1], i64::MAX),
        whole("one", &[1], 1),
        value(13, "raw", ONE),
    ];
    model(ONE, &parts)
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = choose_positions(&bytes);
    }

    #[test]
    fn no_change_of_a_model_makes_it_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = small();
        for (place, byte) in changes {
            *place.get_mut(&mut bytes) = byte;
        }
        let _ = choose_positions(&bytes);
        let _ = choose_positions(&bytes[..cut.index(bytes.len())]);
    }
}
