//! Embeddings are those that sentence-transformers itself gives, alone and in company.

mod texts;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_shared::embed::{EmbedInput, EmbedRequest, EmbedResponse, InputType};
use muster_shared::problem::{Kind, Problem};
use muster_worker::catalog::Ability;
use muster_worker::text::TextModel;
use serde_json::Value;
use texts::{TOLERANCE, assert_close, catalog, changed, edit, folder, items, model, number, numbers, reference, text};

async fn embed(model: &Arc<TextModel>, request: EmbedRequest) -> Result<EmbedResponse, Problem> {
    Arc::clone(model).embed(EmbedRequest { model: "m".to_owned(), ..request }).await
}

/// Vectors of texts with one prompt.
async fn vectors(model: &Arc<TextModel>, texts: &[String], prompt: Option<&str>) -> Vec<Vec<f32>> {
    let inputs = texts.iter().cloned().map(EmbedInput::Text).collect();
    let request =
        EmbedRequest { inputs, prompt_name: prompt.map(str::to_owned), truncate: true, ..EmbedRequest::default() };
    let response = embed(model, request).await.expect("vectors");
    assert!(response.sparse.is_empty() && response.prompt_tokens > 0);
    response.vectors.into_iter().map(|vector| vector.0).collect()
}

/// Compares each text alone, and all of one prompt together.
async fn compare(model: &Arc<TextModel>, reference: &Value, close: impl Fn(&[f32], &[f32], &str)) {
    let items = items(reference, "items");
    assert!(items.len() > 5);
    for item in &items {
        let found = vectors(model, &[text(&item["text"])], item["prompt"].as_str()).await;
        close(&found[0], &numbers(&item["vector"]), &item["text"].to_string());
    }
    for prompt in [None, Some("query")] {
        let items: Vec<&Value> = items.iter().filter(|item| item["prompt"].as_str() == prompt).collect();
        if items.is_empty() {
            continue;
        }
        let texts: Vec<String> = items.iter().map(|item| text(&item["text"])).collect();
        let found = vectors(model, &texts, prompt).await;
        found.iter().zip(items).for_each(|(found, item)| close(found, &numbers(&item["vector"]), "in company"));
    }
}

#[tokio::test]
async fn poolings_layers_and_prompts_give_what_sentence_transformers_gives() {
    for name in ["text-sentence", "text-embedding-roberta", "text-embedding-modernbert", "text-embedding-qwen"] {
        let model = model(name, Ability::Embed);
        let reference = reference(&folder(name));
        assert_eq!(reference["max_tokens"], model.max_tokens, "{name}");
        compare(&model, &reference, |found, expected, what| assert_close(found, expected, &format!("{name}: {what}")))
            .await;
    }
}

#[tokio::test]
async fn a_graph_with_other_numbers_gives_nearly_the_same() {
    let path = folder("text-embedding-roberta");
    let catalog = catalog(path.clone(), Some("fp16"));
    let model = catalog.text("m", Ability::Embed).expect("a model");
    compare(model, &reference(&path), |found, expected, what| {
        let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart > 0.0 && apart < 5e-3, "{what}: {apart}");
    })
    .await;
}

#[tokio::test]
async fn every_way_to_name_a_pooling_is_understood() {
    let text = ["A cat sits on the mat.".to_owned()];
    let pooled = async |config: Value| {
        let copy = changed("text-embedding-modernbert", |path| {
            std::fs::write(path.join("1_Pooling/config.json"), config.to_string()).expect("it can be written");
        });
        let catalog = catalog(copy.path().to_owned(), None);
        vectors(catalog.text("m", Ability::Embed).expect("a model"), &text, None).await.remove(0)
    };
    let mean = pooled(serde_json::json!({ "pooling_mode_mean_tokens": true })).await;
    assert_eq!(pooled(serde_json::json!({ "pooling_mode": "mean" })).await, mean);
    assert_ne!(pooled(serde_json::json!({ "pooling_mode": "lasttoken" })).await, mean);
    let both = pooled(serde_json::json!({ "pooling_mode": ["mean", "cls"] })).await;
    let flags = serde_json::json!({ "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true });
    assert_eq!(pooled(flags).await, both);
    assert_eq!(both.len(), 2 * mean.len());
}

#[tokio::test]
async fn sparse_vectors_are_those_of_sentence_transformers() {
    let reference = reference(&folder("text-sparse"));
    let items = items(&reference, "items");
    let inputs: Vec<EmbedInput> = items.iter().map(|item| EmbedInput::Text(text(&item["text"]))).collect();
    // What a folder without modules.json says, by its architecture alone, is the same.
    let plain = changed("text-sparse", |path| std::fs::remove_file(path.join("modules.json")).expect("it was there"));
    for path in [folder("text-sparse"), plain.path().to_owned()] {
        let catalog = catalog(path, None);
        let model = catalog.text("m", Ability::Embed).expect("a model");
        let request = EmbedRequest { inputs: inputs.clone(), ..EmbedRequest::default() };
        let response = embed(model, request).await.expect("vectors");
        assert!(response.vectors.is_empty());
        for (found, item) in response.sparse.iter().zip(&items) {
            let expected: Vec<u32> = numbers(&item["indices"]).iter().map(|&index| index as u32).collect();
            assert!(found.indices.windows(2).all(|pair| pair[0] < pair[1]) && found.values.iter().all(|&v| v > 0.0));
            let values = numbers(&item["values"]);
            // A number next to 0 may fall on either side.
            let at = |indices: &[u32], values: &[f32], index: u32| {
                indices.iter().position(|&other| other == index).map_or(0.0, |place| values[place])
            };
            for index in 0..600 {
                let apart = at(&found.indices, &found.values, index) - at(&expected, &values, index);
                assert!(apart.abs() < TOLERANCE, "{index} of {}", item["text"]);
            }
        }
    }
}

#[tokio::test]
async fn text_around_a_text_is_chosen_by_name() {
    let model = model("text-sentence", Ability::Embed);
    let one = |input: EmbedInput, prompt: Option<&str>| EmbedRequest {
        inputs: vec![input],
        prompt_name: prompt.map(str::to_owned),
        ..EmbedRequest::default()
    };
    let unknown = embed(&model, one(EmbedInput::Text("a".to_owned()), Some("title"))).await.expect_err("no such");
    assert!(unknown.message.contains("`title`") && unknown.message.contains("document, query"), "{unknown}");
    assert_eq!(unknown.param.as_deref(), Some("prompt_name"));
    let ids = embed(&model, one(EmbedInput::Tokens(vec![2, 3]), Some("query"))).await.expect_err("ids have none");
    assert_eq!(ids.param.as_deref(), Some("prompt_name"), "{ids}");
    let written = one(EmbedInput::Text("passage: a cat".to_owned()), None);
    let catalog = catalog(
        changed("text-sentence", |path| {
            edit(&path.join("config_sentence_transformers.json"), |config| config["default_prompt_name"] = Value::Null);
        })
        .path()
        .to_owned(),
        None,
    );
    let bare = catalog.text("m", Ability::Embed).expect("a model");
    let by_default = embed(&model, one(EmbedInput::Text("a cat".to_owned()), None)).await.expect("a vector");
    assert_eq!(embed(bare, written).await.expect("a vector"), by_default);
}

#[tokio::test]
async fn what_vectors_are_for_chooses_a_prompt_only_where_there_is_one() {
    let prompted = |prompts: Value, default: Value| {
        let folder = changed("text-sentence", |path| {
            edit(&path.join("config_sentence_transformers.json"), |config| {
                (config["prompts"], config["default_prompt_name"]) = (prompts, default);
            });
        });
        Arc::clone(catalog(folder.path().to_owned(), None).text("m", Ability::Embed).expect("a model"))
    };
    let ask = async |model: &Arc<TextModel>, input: EmbedInput, input_type| {
        embed(model, EmbedRequest { inputs: vec![input], input_type, ..EmbedRequest::default() }).await
    };
    let vectors = async |model: &Arc<TextModel>, text: &str, input_type| {
        ask(model, EmbedInput::Text(text.to_owned()), input_type).await.expect("a vector").vectors
    };
    let bare = prompted(serde_json::json!({}), Value::Null);
    for (prompts, default, query, document) in [
        (serde_json::json!({}), Value::Null, "a cat", "a cat"),
        (
            serde_json::json!({ "query": "query: ", "document": "passage: " }),
            "document".into(),
            "query: a cat",
            "passage: a cat",
        ),
        (serde_json::json!({ "passage": "passage: " }), "passage".into(), "a cat", "passage: a cat"),
    ] {
        let model = prompted(prompts.clone(), default);
        for (input_type, written) in [(InputType::Query, query), (InputType::Document, document)] {
            let found = vectors(&model, "a cat", Some(input_type)).await;
            assert_eq!(found, vectors(&bare, written, None).await, "{prompts} {input_type:?}");
        }
    }
    let ids = || EmbedInput::Tokens(vec![2, 9, 3]);
    assert!(ask(&bare, ids(), Some(InputType::Query)).await.is_ok(), "nothing is put before them");
    let asymmetric = model("text-sentence", Ability::Embed);
    let refused = ask(&asymmetric, ids(), Some(InputType::Query)).await.expect_err("nothing can be put before ids");
    assert_eq!(refused.param.as_deref(), Some("input_type"), "{refused}");
}

#[tokio::test]
async fn a_request_whose_time_is_over_is_not_run() {
    let model = model("text-sentence", Ability::Embed);
    let within = async |timeout_ms| {
        let inputs = vec![EmbedInput::Text("a cat".to_owned())];
        embed(&model, EmbedRequest { inputs, timeout_ms, ..EmbedRequest::default() }).await
    };
    assert_eq!(within(Some(0)).await.expect_err("there is no time").kind, Kind::Timeout);
    for enough in [None, Some(60_000), Some(u64::MAX)] {
        assert_eq!(within(enough).await.expect("a vector").vectors.len(), 1, "{enough:?}");
    }
}

/// The real weights, if the machine has them.
fn minilm() -> Option<PathBuf> {
    let Some(models) = std::env::var_os("MUSTER_TEST_MODELS") else {
        eprintln!("skipped: MUSTER_TEST_MODELS does not name a folder with all-MiniLM-L6-v2 in it");
        return None;
    };
    Some(Path::new(&models).join("all-MiniLM-L6-v2"))
}

#[tokio::test]
async fn real_weights_give_the_vectors_of_the_reference_in_every_company() {
    let Some(path) = minilm() else { return };
    let catalog = catalog(path.clone(), None);
    let model = catalog.text("m", Ability::Embed).expect("a model");
    let items = items(&reference(&path), "items");
    let texts: Vec<String> = items.iter().map(|item| text(&item["text"])).collect();
    let check = |found: &[Vec<f32>], order: &[usize]| {
        for (found, &index) in found.iter().zip(order) {
            let expected = numbers(&items[index]["embedding"]);
            let cosine = found.iter().zip(&expected).map(|(a, b)| a * b).sum::<f32>();
            let length = expected.iter().map(|number| number * number).sum::<f32>().sqrt();
            assert!(cosine / length >= 0.99999, "{}: {cosine}", texts[index]);
        }
    };
    for (index, text) in texts.iter().enumerate() {
        check(&vectors(model, std::slice::from_ref(text), None).await, &[index]);
        let tokens = items[index]["tokens"].as_array().expect("ids").iter().map(|id| number(id) as u32).collect();
        let request = EmbedRequest { inputs: vec![EmbedInput::Tokens(tokens)], ..EmbedRequest::default() };
        let response = embed(model, request).await.expect("a vector");
        check(&[response.vectors[0].0.clone()], &[index]);
    }
    let all: Vec<usize> = (0..texts.len()).collect();
    check(&vectors(model, &texts, None).await, &all);
    let mixed: Vec<usize> = (0..40).map(|place| place * 7 % texts.len()).collect();
    let mix: Vec<String> = mixed.iter().map(|&index| texts[index].clone()).collect();
    check(&vectors(model, &mix, None).await, &mixed);
}

#[tokio::test]
async fn a_text_that_the_graph_cannot_run_fails_with_its_words_and_without_a_path() {
    let longer = changed("text-sentence", |folder| {
        edit(&folder.join("tokenizer.json"), |tokenizer| {
            let added = tokenizer["added_tokens"].as_array_mut().expect("a list");
            let token = serde_json::json!({
                "id": 308, "content": "[BEYOND]", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            });
            added.push(token);
        });
    });
    let catalog = catalog(longer.path().to_owned(), None);
    let model = Arc::clone(catalog.text("m", Ability::Embed).expect("it embeds"));
    let ask = async |tokens: &[&[u32]]| {
        let inputs = tokens.iter().map(|tokens| EmbedInput::Tokens(tokens.to_vec())).collect();
        embed(&model, EmbedRequest { inputs, ..EmbedRequest::default() }).await
    };
    let problem = ask(&[&[2, 9, 3], &[2, 308, 3]]).await.expect_err("the graph's table ends at 307");
    assert_eq!(problem.kind, Kind::Run, "the same fails everywhere: {problem}");
    assert!(problem.message.contains("308") && !problem.message.contains('/'), "{problem}");
    assert_eq!(ask(&[&[2, 9, 3]]).await.expect("the model goes on").vectors.len(), 1);
}
