//! Graphs as they get into ONNX Runtime: with the head cut to chosen positions, and optimised once.

mod trial;

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use muster_worker::model::files::{GraphSource, ModelFiles};
use muster_worker::model::manifest::Manifest;
use muster_worker::model::onnx::graph::GraphFacts;
use muster_worker::model::onnx::rewrite::{self, Head};
use muster_worker::model::onnx::session::{self, CausalSession, SessionOptions};
use muster_worker::model::onnx::spin::Spin;
use ort::memory::Allocator;
use ort::session::SessionInputValue;
use ort::value::{DynValue, Tensor};
use trial::runtime;

/// Largest difference of a logit when the head runs on fewer positions at once.
const TOLERANCE: f32 = 1e-5;
/// The same where the head rounds its activation to 8 bits with one scale, which is finer for fewer positions: 0.0008
/// measured, where logits reach 0.09.
const ROUNDING: f32 = 2e-3;
const TOKENS: i64 = 8;

fn options(optimised: Option<&Path>) -> SessionOptions {
    SessionOptions { threads: NonZeroUsize::MIN, spin: Spin::Off, optimised: optimised.map(Path::to_owned) }
}

fn whole(shape: &[i64], numbers: Vec<i64>) -> DynValue {
    // A tensor made of an empty vector would have no memory.
    if numbers.is_empty() {
        return Tensor::<i64>::new(&Allocator::default(), shape.to_vec()).expect("memory").into_dyn();
    }
    Tensor::from_array((shape.to_vec(), numbers)).expect("a tensor").into_dyn()
}

/// Runs the first [`TOKENS`] of a sequence; `positions` are fed where the head takes them.
fn run(model: &mut CausalSession, facts: &GraphFacts, positions: &[i64]) -> (Vec<i64>, Vec<f32>) {
    let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
    let row = [1, TOKENS];
    for (name, tensor) in &facts.inputs {
        let value = match name.as_str() {
            "input_ids" => whole(&row, (0..TOKENS).map(|token| 3 + token * 7).collect()),
            "attention_mask" => whole(&row, vec![1; row[1] as usize]),
            "position_ids" => whole(&row, (0..TOKENS).collect()),
            _ => {
                let shape = [1, tensor.shape[1].expect("heads"), 0, tensor.shape[3].unwrap_or(32)];
                Tensor::<f32>::new(&Allocator::default(), shape).expect("no memory needed").into_dyn()
            }
        };
        inputs.push((name.into(), value.into()));
    }
    if model.head == Head::Positions {
        inputs.push((rewrite::POSITIONS.into(), whole(&[positions.len() as i64], positions.to_vec()).into()));
    }
    let outputs = model.session.run(inputs).expect("a run");
    let (shape, logits) = outputs["logits"].try_extract_tensor::<f32>().expect("logits");
    (shape.to_vec(), logits.to_vec())
}

/// That the logits at chosen positions are those of a run over all of them.
fn check_positions(path: &Path, optimised: Option<&Path>) {
    check_positions_within(path, optimised, TOLERANCE);
}

fn check_positions_within(path: &Path, optimised: Option<&Path>, tolerance: f32) {
    let source = GraphSource::File(path.to_owned());
    let facts = GraphFacts::read(&std::fs::read(path).expect("the graph")).expect("a model");
    let own = session::open(runtime(), &source, &options(None), "own").expect("it loads");
    let (own_shape, all) = run(&mut CausalSession { session: own, head: Head::All, twin: None }, &facts, &[]);
    let mut cut = session::open_causal(runtime(), &source, &options(optimised), "cut").expect("it loads");
    assert_eq!(cut.head, Head::Positions);
    let vocab = *own_shape.last().expect("three") as usize;
    for positions in [&[TOKENS - 1][..], &[-1], &[0, 3, TOKENS - 1], &[2, 2], &[]] {
        let (shape, logits) = run(&mut cut, &facts, positions);
        assert_eq!(shape, [1, positions.len() as i64, vocab as i64]);
        for (position, logits) in positions.iter().zip(logits.chunks_exact(vocab)) {
            let from_end = if *position < 0 { -*position } else { TOKENS - *position } as usize;
            // A graph that its exporter cut gives the last position only.
            let Some(start) = all.len().checked_sub(from_end * vocab) else { continue };
            let difference = logits.iter().zip(&all[start..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference <= tolerance, "{difference} at position {position} of {positions:?}");
        }
    }
}

fn graph(folder: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = ModelFiles::folder(&folder).expect("it is there");
    let Manifest::Causal(manifest) = Manifest::read(&files).expect("a model") else { panic!("a language model") };
    let GraphSource::File(path) = manifest.graph.source else { panic!("a file") };
    path
}

#[test]
fn logits_at_chosen_positions_are_those_of_the_whole_graph() {
    check_positions(&graph("../tests/models/demo-concat"), None);
}

#[test]
fn a_head_that_its_exporter_cut_gives_all_positions_again() {
    let path = graph("demo/chat");
    check_positions(&path, None);
    // The exporter's graph cannot tell the inner positions; the same model in the other layout can.
    let (gqa, concat) = (path, graph("../tests/models/demo-concat"));
    let [gqa, concat] = [gqa, concat].map(|path| {
        let facts = GraphFacts::read(&std::fs::read(&path).expect("the graph")).expect("a model");
        let mut model = session::open_causal(runtime(), &GraphSource::File(path), &options(None), "g").expect("loads");
        run(&mut model, &facts, &[0, 4]).1
    });
    let difference = gqa.iter().zip(&concat).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-3, "{difference}");
}

#[test]
fn weights_beside_a_changed_graph_are_found_and_an_optimised_one_answers_alike() {
    for head in [Product::MatMul, Product::FourBits] {
        let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let path = large_model(folder.path(), head);
        check_positions(&path, None);
        assert!(entries(cache.path()).is_empty());
        check_positions(&path, Some(cache.path()));
        let made = modified(cache.path());
        check_positions(&path, Some(cache.path()));
        assert_eq!(modified(cache.path()), made, "made once");
    }
}

#[test]
fn an_int8_head_gives_the_same_at_chosen_positions_but_for_its_rounding() {
    let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let path = large_model(folder.path(), Product::EightBits);
    check_positions_within(&path, None, ROUNDING);
    check_positions_within(&path, Some(cache.path()), ROUNDING);
    assert_eq!(entries(cache.path()).len(), 1);
}

#[test]
fn an_int8_head_that_its_exporter_cut_rounds_the_last_position_as_before() {
    let path = graph("../tests/models/demo-int8");
    let (source, facts) = (GraphSource::File(path.clone()), std::fs::read(path).expect("the graph"));
    let facts = GraphFacts::read(&facts).expect("a model");
    assert!(facts.shares_scales());
    let own = session::open(runtime(), &source, &options(None), "own").expect("it loads");
    let (_, own) = run(&mut CausalSession { session: own, head: Head::Last, twin: None }, &facts, &[]);
    let mut cut = session::open_causal(runtime(), &source, &options(None), "cut").expect("it loads");
    assert_eq!(cut.head, Head::Positions);
    let (_, last) = run(&mut cut, &facts, &[TOKENS - 1]);
    assert_eq!(own, last, "the same numbers are rounded with the same scale");
    assert_eq!(run(&mut cut, &facts, &[]).0, [1, 0, own.len() as i64], "also for none");
}

#[test]
fn a_damaged_optimised_graph_is_replaced_and_answers_stay_right() {
    let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let path = large_model(folder.path(), Product::MatMul);
    check_positions(&path, Some(cache.path()));
    let entry = entries(cache.path()).pop().expect("an entry");
    for (file, content) in [("model.data", &b"short"[..]), ("model.onnx", b"garbage"), ("entry.json", b"{}")] {
        std::fs::write(entry.join(file), content).expect("damage");
        check_positions(&path, Some(cache.path()));
        assert!(std::fs::metadata(entry.join(file)).expect("made anew").len() > content.len() as u64, "{file}");
    }
    assert_eq!(entries(cache.path()), [entry]);
}

#[test]
fn a_cache_that_cannot_be_used_does_not_keep_a_model_from_serving() {
    let (folder, no_folder) = (tempfile::tempdir().expect("a folder"), tempfile::NamedTempFile::new().expect("a file"));
    check_positions(&large_model(folder.path(), Product::MatMul), Some(no_folder.path()));
}

#[test]
#[cfg(target_os = "linux")]
fn threads_that_spin_until_told_otherwise_have_a_session_to_go_to() {
    let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let path = large_model(folder.path(), Product::FourBits);
    let facts = GraphFacts::read(&std::fs::read(&path).expect("the graph")).expect("a model");
    let source = GraphSource::File(path);
    let threads = NonZeroUsize::new(2).expect("not zero");
    let open = |spin, optimised| {
        session::open_causal(runtime(), &source, &SessionOptions { threads, spin, optimised }, "g").expect("it loads")
    };
    let cache = Some(cache.path().to_owned());
    assert!(open(Spin::Auto, None).twin.is_none(), "weights would be in memory twice");
    assert!(open(Spin::Brief, cache.clone()).twin.is_none());
    let mut first = open(Spin::Auto, cache);
    let twin = first.twin.take().expect("a kernel that counts, and ONNX Runtime 1.26 or later");
    let mut second = CausalSession { session: twin.open().expect("it loads"), head: first.head, twin: None };
    assert_eq!(run(&mut first, &facts, &[0, 5]), run(&mut second, &facts, &[0, 5]));
}

fn entries(cache: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(cache.join("muster/optimised")).into_iter().flatten().flatten();
    found.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn modified(cache: &Path) -> Vec<std::time::SystemTime> {
    let weights = entries(cache).into_iter().map(|entry| entry.join("model.data"));
    weights.map(|path| path.metadata().and_then(|weights| weights.modified()).expect("weights")).collect()
}

/// Rows of different reach, so that a scale taken over some of them is not that of all.
fn embedding() -> impl Iterator<Item = u8> {
    let number = |index: u64| (((index * 31 % 97) as f32) / 388.0 - 0.125) * (1 + index / HIDDEN % 5) as f32 / 5.0;
    (0..VOCAB * HIDDEN).flat_map(move |index| number(index).to_le_bytes())
}

/// How the head of [`large_model`] multiplies.
#[derive(Clone, Copy, PartialEq)]
enum Product {
    MatMul,
    FourBits,
    EightBits,
}

const VOCAB: u64 = 4096;
const HIDDEN: u64 = 640;

/// A model of two weights in a file beside it, large enough for the cache: `logits = tanh(embedding[input_ids]) · head`.
fn large_model(folder: &Path, head: Product) -> PathBuf {
    let mut data = Vec::new();
    let mut graph = node("Gather", "", &["embedding", "input_ids"], "embedded", &[]);
    graph.extend(node("Tanh", "", &["embedded"], "hidden", &[]));
    let floats = |count: u64| (0..count).flat_map(|index| (((index * 31 % 97) as f32) / 388.0 - 0.125).to_le_bytes());
    let mut weights = vec![weight("embedding", 1, &[VOCAB, HIDDEN], embedding().collect(), &mut data)];
    match head {
        Product::MatMul => {
            graph.extend(node("MatMul", "", &["hidden", "head"], "logits", &[]));
            weights.push(weight("head", 1, &[HIDDEN, VOCAB], floats(VOCAB * HIDDEN).collect(), &mut data));
        }
        Product::FourBits => {
            let attributes = [("K", HIDDEN), ("N", VOCAB), ("bits", 4), ("block_size", 32)];
            graph.extend(node("MatMulNBits", "com.microsoft", &["hidden", "head", "scales"], "logits", &attributes));
            let packed = (0..VOCAB * HIDDEN / 2).map(|index| (index * 7) as u8).collect();
            weights.push(weight("head", 2, &[VOCAB, HIDDEN / 32, 16], packed, &mut data));
            let scales = floats(VOCAB * HIDDEN / 32).collect();
            weights.push(weight("scales", 1, &[VOCAB, HIDDEN / 32], scales, &mut data));
        }
        Product::EightBits => {
            graph.extend(node("DynamicQuantizeLinear", "", &["hidden"], "quantised scale zero", &[]));
            graph.extend(node("Mul", "", &["scale", "scales"], "both", &[]));
            graph.extend(node("MatMulInteger", "", &["quantised", "head", "zero"], "product", &[]));
            graph.extend(node("Cast", "", &["product"], "float", &[("to", 1)]));
            graph.extend(node("Mul", "", &["float", "both"], "logits", &[]));
            // Of 7 bits: some processors saturate sums of products of 8.
            let whole = (0..VOCAB * HIDDEN).map(|index| (index * 31 % 127) as i8 - 63).map(i8::cast_unsigned);
            weights.push(weight("head", 3, &[HIDDEN, VOCAB], whole.collect(), &mut data));
            let scales = (0..VOCAB).flat_map(|_| (0.125_f32 / 64.0).to_le_bytes()).collect();
            weights.push(weight("scales", 1, &[VOCAB], scales, &mut data));
        }
    }
    weights.iter().for_each(|weight| push(&mut graph, 5, weight));
    push(&mut graph, 2, b"large");
    push(&mut graph, 11, &value("input_ids", 7, &[None, None]));
    push(&mut graph, 12, &value("logits", 1, &[None, None, Some(VOCAB)]));
    let mut model = Vec::new();
    number(&mut model, 1, 8);
    push(&mut model, 7, &graph);
    for (domain, version) in [("", 17), ("com.microsoft", 1)] {
        let mut opset = Vec::new();
        push(&mut opset, 1, domain.as_bytes());
        number(&mut opset, 2, version);
        push(&mut model, 8, &opset);
    }
    let path = folder.join("model.onnx");
    std::fs::write(&path, model).expect("the graph");
    std::fs::write(folder.join("model.onnx.data"), data).expect("the weights");
    path
}

/// A node as a field of a graph; outputs with a space between them.
fn node(operator: &str, domain: &str, inputs: &[&str], outputs: &str, attributes: &[(&str, u64)]) -> Vec<u8> {
    let mut node = Vec::new();
    inputs.iter().for_each(|input| push(&mut node, 1, input.as_bytes()));
    outputs.split(' ').for_each(|output| push(&mut node, 2, output.as_bytes()));
    push(&mut node, 4, operator.as_bytes());
    for (name, whole) in attributes {
        let mut attribute = Vec::new();
        push(&mut attribute, 1, name.as_bytes());
        number(&mut attribute, 3, *whole);
        number(&mut attribute, 20, 2);
        push(&mut node, 5, &attribute);
    }
    push(&mut node, 7, domain.as_bytes());
    let mut field = Vec::new();
    push(&mut field, 1, &node);
    field
}

/// A weight whose bytes go to the end of `data`.
fn weight(name: &str, element: u64, shape: &[u64], bytes: Vec<u8>, data: &mut Vec<u8>) -> Vec<u8> {
    let mut tensor = Vec::new();
    shape.iter().for_each(|size| number(&mut tensor, 1, *size));
    number(&mut tensor, 2, element);
    push(&mut tensor, 8, name.as_bytes());
    let place = [("location", "model.onnx.data".to_owned()), ("offset", data.len().to_string())];
    for (key, entry) in place.into_iter().chain([("length", bytes.len().to_string())]) {
        let mut pair = Vec::new();
        push(&mut pair, 1, key.as_bytes());
        push(&mut pair, 2, entry.as_bytes());
        push(&mut tensor, 13, &pair);
    }
    number(&mut tensor, 14, 1);
    data.extend(bytes);
    tensor
}

/// An input or output of the graph.
fn value(name: &str, element: u64, shape: &[Option<u64>]) -> Vec<u8> {
    let mut dimensions = Vec::new();
    for (index, size) in shape.iter().enumerate() {
        let mut dimension = Vec::new();
        match size {
            Some(size) => number(&mut dimension, 1, *size),
            None => push(&mut dimension, 2, ["batch", "sequence"][index].as_bytes()),
        }
        push(&mut dimensions, 1, &dimension);
    }
    let (mut tensor, mut kind, mut value) = (Vec::new(), Vec::new(), Vec::new());
    number(&mut tensor, 1, element);
    push(&mut tensor, 2, &dimensions);
    push(&mut kind, 1, &tensor);
    push(&mut value, 1, name.as_bytes());
    push(&mut value, 2, &kind);
    value
}

fn push(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, out);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn number(out: &mut Vec<u8>, field: u32, number: u64) {
    prost::encoding::encode_key(field, prost::encoding::WireType::Varint, out);
    prost::encoding::encode_varint(number, out);
}
