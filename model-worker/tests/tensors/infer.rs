//! One request: every datatype, and whatever may be wrong with it.

use muster_shared::problem::Kind;
use muster_shared::tensor::{Datatype, Tensor};

use crate::bench::*;

/// Bytes of some elements of a datatype.
fn elements(datatype: Datatype, count: usize) -> Vec<u8> {
    match datatype {
        Datatype::Bool => (0..count).map(|at| (at % 2) as u8).collect(),
        Datatype::Bytes => texts("", &["", "a", "päris", "\u{1f980}"][..count.min(4)]).data.to_vec(),
        // Any bits are a number, NaNs with a payload among them.
        other => (0..count * other.size().expect("it is fixed")).map(|at| (at * 37 + 251) as u8).collect(),
    }
}

fn identities(count: usize) -> Vec<Tensor> {
    let input = |datatype: Datatype| tensor(&format!("in_{datatype}"), datatype, &[count], elements(datatype, count));
    Datatype::ALL.map(input).to_vec()
}

#[tokio::test]
async fn every_datatype_comes_back_as_it_was_in_every_size() {
    let (tensors, _folder) = served(&["identity"]);
    for count in [0, 1, 4] {
        let inputs = identities(count);
        let response = tensors.infer(request("identity", inputs.clone())).await.expect("an answer");
        assert_eq!((response.model.as_str(), response.version.as_str()), ("identity", "1"));
        assert_eq!(response.outputs.len(), inputs.len());
        for (input, output) in inputs.iter().zip(&response.outputs) {
            assert_eq!(output.name, format!("out_{}", input.datatype));
            assert_eq!((output.datatype, &output.shape), (input.datatype, &input.shape));
            assert_eq!(output.data, input.data, "{}", input.datatype);
        }
    }
}

#[tokio::test]
async fn numbers_are_taken_wherever_they_lie_in_memory() {
    let (tensors, _folder) = served(&["identity"]);
    for shift in 0..8 {
        let mut inputs = identities(3);
        for input in &mut inputs {
            let shifted = [vec![0; shift], input.data.to_vec()].concat();
            input.data = bytes::Bytes::from(shifted).slice(shift..);
        }
        let response = tensors.infer(request("identity", inputs.clone())).await.expect("an answer");
        assert!(inputs.iter().zip(&response.outputs).all(|(input, output)| input.data == output.data));
    }
}

#[tokio::test]
async fn outputs_come_in_the_order_in_which_they_are_wanted() {
    let (tensors, _folder) = served(&["add"]);
    let ask = |outputs| {
        let (a, b) = (floats("a", &[1, 3], &[1.0, 2.0, 3.0]), floats("b", &[1, 3], &[0.5; 3]));
        let mut request = request("add", vec![b, a]);
        request.outputs = outputs;
        request.id = "seven".to_owned();
        tensors.infer(request)
    };
    let all = ask(Vec::new()).await.expect("an answer");
    assert_eq!(all.id, "seven");
    assert_eq!(all.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(), ["sum", "difference"]);
    assert_eq!(numbers(output(&all, "sum")), [1.5, 2.5, 3.5]);
    let one = ask(vec![wanted("difference", 0)]).await.expect("an answer");
    assert_eq!((one.outputs.len(), numbers(&one.outputs[0])), (1, vec![0.5, 1.5, 2.5]));
    let turned = ask(vec![wanted("difference", 0), wanted("sum", 0)]).await.expect("an answer");
    assert_eq!(turned.outputs[1].name, "sum");
}

#[tokio::test]
async fn a_scalar_has_no_dimensions_and_a_weight_may_be_replaced() {
    let (tensors, _folder) = served(&["scalar"]);
    let metadata = tensors.metadata("scalar", None).expect("it is there");
    assert!(metadata.inputs.iter().all(|input| input.shape.is_empty()), "{metadata:?}");
    let ask = |inputs| tensors.infer(request("scalar", inputs));
    let twice = ask(vec![floats("x", &[], &[21.0])]).await.expect("an answer");
    assert_eq!((twice.outputs[0].shape.len(), numbers(&twice.outputs[0])), (0, vec![42.0]));
    let given = ask(vec![floats("x", &[], &[21.0]), floats("factor", &[], &[3.0])]).await.expect("an answer");
    assert_eq!(numbers(&given.outputs[0]), [63.0]);
    let problem = refusal(&tensors, request("scalar", vec![floats("x", &[1], &[1.0])])).await;
    assert_eq!(problem.param.as_deref(), Some("inputs[0].shape"));
    assert!(problem.message.contains("[1]") && problem.message.contains("expected []"), "{problem}");
}

#[tokio::test]
async fn strings_are_text_and_text_only() {
    let (tensors, _folder) = served(&["strings"]);
    let ask = |left, right| request("strings", vec![left, right]);
    let right = || texts("right", &["!", "", "é"]);
    let response = tensors.infer(ask(texts("left", &["a", "", "ß"]), right())).await.expect("an answer");
    assert_eq!(strings(&response.outputs[0]), ["a!", "", "ßé"]);
    for (bytes, words) in [(&b"\xff"[..], "UTF-8"), (b"a\0b", "zero byte")] {
        let mut data = (bytes.len() as u32).to_le_bytes().to_vec();
        data.extend_from_slice(bytes);
        data.extend_from_slice(&[0; 8]);
        let problem = refusal(&tensors, ask(tensor("left", Datatype::Bytes, &[3], data), right())).await;
        assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some("inputs[0].data")));
        assert!(problem.message.contains(words) && problem.message.contains("element 0"), "{problem}");
    }
}

#[tokio::test]
async fn a_run_that_fails_says_why_and_the_next_one_succeeds() {
    let (tensors, folder) = served(&["gather"]);
    let ask =
        |index: i64| request("gather", vec![tensor("index", Datatype::Int64, &[1], index.to_le_bytes().to_vec())]);
    let problem = refusal(&tensors, ask(99)).await;
    assert_eq!(problem.kind, Kind::Run);
    assert!(problem.message.contains("Gather") && problem.message.contains("99"), "{problem}");
    assert!(!problem.message.contains("/onnxruntime"), "{problem}");
    assert!(!problem.message.contains(&folder.path().display().to_string()), "{problem}");
    assert_eq!(numbers(&tensors.infer(ask(4)).await.expect("an answer").outputs[0]), [40.0]);
    let statistics = &tensors.statistics(Some("gather"), None).expect("it is there")[0];
    assert_eq!((statistics.inference_stats.fail.count, statistics.inference_stats.success.count), (1, 1));
}

#[tokio::test]
async fn who_is_not_there_is_told_who_is() {
    let (tensors, _folder) = served(&["mlp", "fixed"]);
    let problem = refusal(&tensors, request("nobody", Vec::new())).await;
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::UnknownModel, Some("model")));
    assert!(problem.message.contains("nobody") && problem.message.contains("fixed, mlp"), "{problem}");
    for version in ["3", "x", "01x"] {
        let mut ask = request("mlp", Vec::new());
        ask.version = Some(version.to_owned());
        let problem = refusal(&tensors, ask).await;
        assert_eq!((problem.kind, problem.param.as_deref()), (Kind::UnknownModel, Some("version")));
        assert!(problem.message.contains(version) && problem.message.contains("1, 2"), "{problem}");
    }
}

#[tokio::test]
async fn classes_have_labels_and_each_row_its_own() {
    let (tensors, _folder) = served(&["mlp"]);
    let ask = |classes| {
        let mut ask = request("mlp", vec![floats("x", &[2, 4], &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 0.0])]);
        ask.outputs = vec![wanted("scores", classes)];
        ask
    };
    let scores = numbers(&tensors.infer(ask(0)).await.expect("an answer").outputs[0]);
    let response = tensors.infer(ask(2)).await.expect("an answer");
    let classes = &response.outputs[0];
    assert_eq!((classes.datatype, &classes.shape[..]), (Datatype::Bytes, &[2, 2][..]));
    let labels = ["cat", "dog", "bird"];
    for (row, best) in strings(classes).chunks(2).enumerate() {
        let scores = &scores[row * 3..][..3];
        let first = (0..3).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).expect("three");
        assert_eq!(best[0], format!("{:.6}:{first}:{}", scores[first], labels[first]));
    }
    let problem = refusal(&tensors, ask(4)).await;
    assert_eq!(problem.param.as_deref(), Some("outputs[0].classification"));
    assert!(problem.message.contains("is 4") && problem.message.contains("3 classes"), "{problem}");
}

#[tokio::test]
async fn a_graph_with_fixed_sizes_takes_these_and_no_others() {
    let (tensors, _folder) = served(&["fixed"]);
    let response = tensors.infer(request("fixed", vec![floats("x", &[2, 3], &[1.0; 6])])).await.expect("an answer");
    assert_eq!(numbers(&response.outputs[0]), [-1.0; 6]);
    for shape in [&[1, 3][..], &[2, 3, 1], &[6], &[0, 3]] {
        let count = shape.iter().product();
        let problem = refusal(&tensors, request("fixed", vec![floats("x", shape, &vec![0.0; count])])).await;
        assert!(problem.message.contains("expected [2, 3]"), "{problem}");
    }
}
