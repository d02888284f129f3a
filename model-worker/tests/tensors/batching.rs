//! Which requests run together, and that nobody can tell by the answer.

use std::sync::Arc;

use muster_shared::tensor::config::ModelConfig;
use muster_shared::tensor::{InferRequest, ModelStatistics};
use muster_worker::tensor::repository::Tensors;

use crate::bench::*;

fn told(config: &ModelConfig) -> &str {
    &config.parameters["muster.batching"].string_value
}

fn statistics(tensors: &Tensors, model: &str) -> ModelStatistics {
    let mut all = tensors.statistics(Some(model), None).expect("it is there");
    all.pop().expect("the newest version")
}

#[tokio::test]
async fn rows_run_together_where_a_trial_shows_that_no_number_changes() {
    let (tensors, _folder) = served(&["add", "softmax", "identity", "mlp"]);
    let config = |model: &str| tensors.config(model, None).expect("it is there");
    let add = config("add");
    assert!(told(&add).contains("run together up to 32 rows"), "{}", told(&add));
    assert_eq!((add.max_batch_size, add.dynamic_batching), (0, None), "nothing is declared that was not");
    let softmax = config("softmax");
    assert!(told(&softmax).contains("run alone: 2 rows give other numbers"), "{}", told(&softmax));
    let mlp = config("mlp");
    assert!(told(&mlp).contains("as declared; up to 8 rows were tried"), "{}", told(&mlp));
    assert!(!config("identity").parameters.contains_key("muster.batching"), "its inputs are of several lengths");
}

/// Many requests at the same time; each answer must be that of the request alone, bit for bit.
async fn ask_in_a_crowd(tensors: Arc<Tensors>, requests: Vec<InferRequest>) {
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(tensors.infer(request.clone()).await.expect("an answer"));
    }
    let asked = requests.into_iter().map(|request| {
        let tensors = Arc::clone(&tensors);
        tokio::spawn(async move { tensors.infer(request).await })
    });
    let asked: Vec<_> = asked.collect();
    for (together, alone) in asked.into_iter().zip(alone) {
        assert_eq!(together.await.expect("no panic").expect("an answer"), alone);
    }
}

fn numbered(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7 + seed * 13) as f32).sin()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_a_crowd_are_those_of_each_alone() {
    let (tensors, _folder) = served(&["mlp", "add"]);
    let tensors = Arc::new(tensors);
    let mlp = (0..60).map(|seed| {
        let rows = 1 + seed % 3;
        request("mlp", vec![floats("x", &[rows, 4], &numbered(rows * 4, seed))])
    });
    ask_in_a_crowd(Arc::clone(&tensors), mlp.collect()).await;
    let mlp = statistics(&tensors, "mlp");
    assert_eq!(mlp.inference_count, 2 * (0..60).map(|seed| 1 + seed % 3).sum::<u64>());
    assert_eq!(mlp.inference_stats.success.count, 120);
    assert!(mlp.execution_count < 120, "some ran together: {mlp:?}");
    assert!(mlp.batch_stats.iter().all(|batch| batch.batch_size <= 8), "{mlp:?}");

    let add = (0..60).map(|seed| {
        let mut ask = request(
            "add",
            vec![floats("a", &[1, 3], &numbered(3, seed)), floats("b", &[1, 3], &numbered(3, seed + 1))],
        );
        // Not alike: those that want less run among themselves.
        ask.outputs = if seed % 2 == 0 { vec![wanted("sum", 0)] } else { Vec::new() };
        ask
    });
    ask_in_a_crowd(tensors, add.collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_run_together_does_not() {
    let (tensors, _folder) = served(&["softmax"]);
    let tensors = Arc::new(tensors);
    let requests = (0..40).map(|seed| request("softmax", vec![floats("x", &[2, 3], &numbered(6, seed))]));
    ask_in_a_crowd(Arc::clone(&tensors), requests.collect()).await;
    let softmax = statistics(&tensors, "softmax");
    assert_eq!((softmax.execution_count, softmax.batch_stats.len()), (80, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_at_fault_does_not_spoil_those_beside_it() {
    let (tensors, _folder) = served(&["gather"]);
    assert!(told(&tensors.config("gather", None).expect("it is there")).contains("run together"));
    let tensors = Arc::new(tensors);
    let asked: Vec<_> = (0..60i64)
        .map(|at| {
            let index = if at % 5 == 0 { 77 } else { at % 5 };
            let data = index.to_le_bytes().to_vec();
            let ask = request("gather", vec![tensor("index", muster_shared::tensor::Datatype::Int64, &[1], data)]);
            let tensors = Arc::clone(&tensors);
            tokio::spawn(async move { (index, tensors.infer(ask).await) })
        })
        .collect();
    for asked in asked {
        match asked.await.expect("no panic") {
            (77, outcome) => assert!(outcome.expect_err("out of range").message.contains("Gather")),
            (index, outcome) => {
                assert_eq!(numbers(&outcome.expect("an answer").outputs[0]), [index as f32 * 10.0]);
            }
        }
    }
}

#[tokio::test]
async fn a_declared_batch_is_a_limit_and_one_size() {
    let (tensors, _folder) = served(&["mlp"]);
    let metadata = tensors.metadata("mlp", None).expect("it is there");
    assert_eq!((&metadata.inputs[0].shape[..], &metadata.versions[..]), (&[-1, 4][..], &["1".into(), "2".into()][..]));
    let config = tensors.config("mlp", None).expect("it is there");
    assert_eq!((config.max_batch_size, &config.input[0].dims[..]), (8, &[4][..]));
    assert_eq!(config.parameters["origin"].string_value, "scripts/test-models");
    let problem = refusal(&tensors, request("mlp", vec![floats("x", &[9, 4], &[0.0; 36])])).await;
    assert_eq!(problem.param.as_deref(), Some("inputs[0].shape"));
    assert!(problem.message.contains("9 rows") && problem.message.contains("at most 8"), "{problem}");
}
