//! Scores, classes and entities are those that transformers itself gives.

mod texts;

use std::sync::Arc;

use muster_shared::control::ModelKind;
use muster_shared::text::{Aggregation, ClassifyInput, ClassifyRequest, EntitiesRequest, RerankRequest};
use muster_worker::catalog::Ability;
use serde_json::Value;
use texts::{TOLERANCE, assert_close, folder, items, model, number, numbers, reference, text};

fn rerank(query: &str, documents: Vec<String>) -> RerankRequest {
    let query = query.to_owned();
    RerankRequest {
        request_id: String::new(),
        model: "m".to_owned(),
        query,
        documents,
        raw_scores: false,
        truncate: false,
        timeout_ms: None,
    }
}

fn classify(inputs: Vec<ClassifyInput>) -> ClassifyRequest {
    ClassifyRequest {
        request_id: String::new(),
        model: "m".to_owned(),
        inputs,
        raw_scores: false,
        truncate: false,
        timeout_ms: None,
    }
}

#[tokio::test]
async fn documents_are_scored_as_by_a_cross_encoder() {
    for name in ["text-cross-encoder", "text-cross-encoder-roberta"] {
        let model = model(name, Ability::Rerank);
        for item in items(&reference(&folder(name)), "items") {
            let ask = |raw_scores| {
                let request = rerank(&text(&item["query"]), vec![text(&item["document"])]);
                Arc::clone(&model).rerank(RerankRequest { raw_scores, truncate: item["cut"] == true, ..request })
            };
            let (scored, raw) = (ask(false).await.expect("a score"), ask(true).await.expect("a score"));
            assert_close(&scored.scores, &[number(&item["score"])], &format!("{name}: {}", item["document"]));
            assert_close(&raw.scores, &[number(&item["raw"])], name);
            assert_eq!(scored.prompt_tokens as usize, item["tokens"].as_array().map_or(0, Vec::len), "{item}");
        }
    }
}

#[tokio::test]
async fn many_documents_are_scored_as_each_alone() {
    let model = model("text-cross-encoder", Ability::Rerank);
    // Enough text to be tokenized by several threads.
    let documents: Vec<String> =
        (0..1200).map(|index| format!("{} cats sit on {} mats", index, "the ".repeat(index % 9))).collect();
    let all = Arc::clone(&model).rerank(rerank("Where is the cat?", documents.clone())).await.expect("scores");
    for index in [0, 1, 599, 1199] {
        let one = Arc::clone(&model).rerank(rerank("Where is the cat?", vec![documents[index].clone()])).await;
        assert_close(&[all.scores[index]], &one.expect("a score").scores, &documents[index]);
    }
}

#[tokio::test]
async fn texts_and_pairs_are_of_the_classes_that_transformers_tells() {
    for (name, kind) in [("text-classifier", ModelKind::Classify), ("text-moderator", ModelKind::Moderate)] {
        let model = model(name, Ability::Classify);
        assert_eq!(model.card().kind, Some(kind));
        let reference = reference(&folder(name));
        let (items, pairs) = (items(&reference, "items"), items(&reference, "pairs"));
        let mut inputs: Vec<ClassifyInput> =
            items.iter().map(|item| ClassifyInput::Text(text(&item["text"]))).collect();
        inputs.extend(pairs.iter().map(|item| ClassifyInput::Pair(text(&item["pair"][0]), text(&item["pair"][1]))));
        let response = Arc::clone(&model).classify(classify(inputs.clone())).await.expect("classes");
        assert_eq!(serde_json::json!(response.labels), reference["labels"]);
        assert_eq!(response.multi_label, kind == ModelKind::Moderate);
        for (found, item) in response.scores.iter().zip(items.iter().chain(&pairs)) {
            assert_close(found, &numbers(&item["scores"]), &format!("{name}: {item}"));
        }
        let raw = ClassifyRequest { raw_scores: true, ..classify(inputs) };
        let raw = Arc::clone(&model).classify(raw).await.expect("classes");
        for (found, item) in raw.scores.iter().zip(&items) {
            assert_close(found, &numbers(&item["raw"]), name);
        }
    }
}

#[tokio::test]
async fn token_ids_are_classified_as_their_text() {
    let model = model("text-classifier", Ability::Classify);
    let ids = model.tokenizer.encode("A cat sits on the mat.", true).expect("ids");
    let inputs = vec![ClassifyInput::Tokens(ids), ClassifyInput::Text("A cat sits on the mat.".to_owned())];
    let response = model.classify(classify(inputs)).await.expect("classes");
    assert_eq!(response.scores[0], response.scores[1]);
}

#[tokio::test]
async fn entities_are_those_of_transformers_by_each_rule() {
    for name in ["text-entities", "text-entities-roberta"] {
        let model = model(name, Ability::Entities);
        let items = items(&reference(&folder(name)), "items");
        let mut labels = std::collections::BTreeSet::new();
        for aggregation in Aggregation::ALL {
            let request = EntitiesRequest {
                request_id: String::new(),
                model: "m".to_owned(),
                inputs: items.iter().map(|item| text(&item["text"])).collect(),
                aggregation,
                truncate: false,
                timeout_ms: None,
            };
            let response = Arc::clone(&model).entities(request).await.expect("entities");
            for (found, item) in response.entities.iter().zip(&items) {
                let expected = item[aggregation.name()].as_array().expect("a list");
                let of = |entity: &Value| {
                    let place = ["start", "end"].map(|field| number(&entity[field]) as u32);
                    (text(&entity["label"]), place, text(&entity["text"]))
                };
                let told =
                    found.iter().map(|entity| (entity.label.clone(), [entity.start, entity.end], entity.text.clone()));
                let expected_places: Vec<_> = expected.iter().map(of).collect();
                assert_eq!(told.collect::<Vec<_>>(), expected_places, "{name} {aggregation:?} {}", item["text"]);
                for (entity, expected) in found.iter().zip(expected) {
                    assert!((entity.score - number(&expected["score"])).abs() < TOLERANCE, "{entity:?} {expected}");
                    labels.insert(entity.label.clone());
                }
            }
        }
        assert!(labels.len() >= 4, "{name} tells only {labels:?}");
    }
}
