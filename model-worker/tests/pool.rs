//! The pool of a text model on ONNX Runtime: what a text gives does not depend on its company.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;
use muster_worker::Config;
use muster_worker::catalog::Catalog;
use muster_worker::config::{ModelConfig, ModelSource};
use muster_worker::encoder::head::{Encoded, Tokens};
use muster_worker::model::onnx::runtime::LibrarySearch;
use muster_worker::text::TextModel;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

const ALIKE: f64 = 0.99999;

fn place(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// A model on so many threads.
fn load(source: ModelSource, threads: usize) -> Arc<TextModel> {
    let cache = place("XDG_CACHE_HOME").or_else(|| Some(place("HOME")?.join(".cache")));
    let model = ModelConfig { source, name: "model".to_owned() };
    let config = Config {
        models: vec![model],
        threads: NonZeroUsize::new(threads),
        library: LibrarySearch { explicit: place("ORT_DYLIB_PATH"), beside: None, cache },
        ..Config::default()
    };
    let (catalog, failures) = Catalog::load(&config);
    assert!(failures.is_empty(), "scripts/fetch-onnxruntime.sh gets ONNX Runtime: {failures:?}");
    Arc::clone(catalog.texts().next().expect("an embedding model"))
}

async fn embed(model: &TextModel, texts: Vec<Vec<u32>>) -> Vec<Vec<f32>> {
    let texts = texts.into_iter().map(Tokens::one).collect();
    let encoded = model.encoder.encode(texts, None).await.expect("an answer");
    let dense = encoded.into_iter().map(|encoded| match encoded {
        Encoded::Dense(vector) => vector,
        other => panic!("no vector: {other:?}"),
    });
    dense.collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

/// Each text alone, then all in random company from several clients at once.
async fn check_company(model: &TextModel, texts: &[Vec<u32>], expected: &[Vec<f32>]) {
    for (text, expected) in texts.iter().zip(expected) {
        let vector = embed(model, vec![text.clone()]).await;
        assert!(cosine(&vector[0], expected) >= ALIKE, "{} tokens alone", text.len());
    }
    let mut random = SmallRng::seed_from_u64(5);
    let orders = (0..6).map(|_| {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.shuffle(&mut random);
        order
    });
    let clients = orders.collect::<Vec<_>>().into_iter().map(async |order| {
        let vectors = embed(model, order.iter().map(|&index| texts[index].clone()).collect()).await;
        for (vector, &index) in vectors.iter().zip(&order) {
            assert!(cosine(vector, &expected[index]) >= ALIKE, "{} tokens in company", texts[index].len());
        }
    });
    join_all(clients).await;
}

#[tokio::test]
async fn company_does_not_change_what_a_text_gives() {
    let mut random = SmallRng::seed_from_u64(4);
    let model = load(ModelSource::DemoEmbedding, 3);
    let size = model.tokenizer.vocab_size();
    let longest = model.max_tokens.min(200) as f32;
    let mut text = || -> Vec<u32> {
        let length = longest.powf(random.random_range(0.0..1.0)) as usize;
        (0..length.max(1)).map(|_| random.random_range(5..size)).collect()
    };
    let texts: Vec<Vec<u32>> = (0..200).map(|_| text()).collect();
    let mut alone = Vec::new();
    for text in &texts {
        alone.extend(embed(&model, vec![text.clone()]).await);
    }
    check_company(&model, &texts, &alone).await;
}

#[tokio::test]
async fn a_token_beyond_the_graph_fails_one_text_with_words_that_hold_no_path() {
    let model = load(ModelSource::DemoEmbedding, 1);
    let bad = model.encoder.encode(vec![Tokens::one(vec![u32::MAX; 4])], None);
    let good = model.encoder.encode(vec![Tokens::one(vec![9; 4])], None);
    let (bad, good) = tokio::join!(bad, good);
    let error = bad.expect_err("no such token").to_string();
    assert!(error.contains("a run of the model failed") && !error.contains('/'), "{error}");
    assert!(good.is_ok(), "{good:?}");
}

/// `MUSTER_TEST_MODELS` names a folder with all-MiniLM-L6-v2 and its `reference.json`: texts, tokens and vectors that
/// PyTorch gave.
#[tokio::test]
async fn a_real_model_gives_its_reference_singly_and_in_any_company() {
    let Some(models) = place("MUSTER_TEST_MODELS") else {
        eprintln!("skipped: MUSTER_TEST_MODELS does not name a folder with all-MiniLM-L6-v2 in it");
        return;
    };
    let folder = models.join("all-MiniLM-L6-v2");
    let reference = std::fs::read(folder.join("reference.json")).expect("reference.json");
    let reference: serde_json::Value = serde_json::from_slice(&reference).expect("JSON");
    let items = reference["items"].as_array().expect("items");
    let numbers = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
    };
    let texts: Vec<Vec<u32>> =
        items.iter().map(|item| numbers(&item["tokens"]).into_iter().map(|id| id as u32).collect()).collect();
    let expected: Vec<Vec<f32>> = items
        .iter()
        .map(|item| numbers(&item["embedding"]).into_iter().map(|number| number as f32).collect())
        .collect();
    check_company(&load(ModelSource::Folder(folder), 2), &texts, &expected).await;
}
