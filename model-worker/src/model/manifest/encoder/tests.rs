use std::collections::BTreeMap;

use muster_shared::control::ModelKind;
use serde_json::{Value, json};

use super::super::super::files::GraphSource;
use super::super::super::onnx::Element;
use super::super::super::onnx::encoder::{Integer, Numbering};
use super::super::super::onnx::graph::{GraphFacts, TensorFacts};
use super::*;
use crate::encoder::pooling::Pooling;

const I64: i32 = 7;

/// A folder to be, with the graph that lies in it.
struct Folder {
    files: BTreeMap<&'static str, Value>,
    inputs: BTreeMap<&'static str, (i32, Vec<Option<i64>>)>,
    output: (&'static str, i32, Vec<Option<i64>>),
}

/// A folder with the given `config.json`, whose graph has one output of a name and a shape.
fn folder(config: Value, output: &'static str, shape: &[Option<i64>]) -> Folder {
    let inputs = ["input_ids", "attention_mask"].map(|name| (name, (I64, vec![None, None])));
    Folder { files: [("config.json", config)].into(), inputs: inputs.into(), output: (output, 1, shape.to_vec()) }
}

fn bert(output: &'static str, shape: &[Option<i64>]) -> Folder {
    folder(json!({ "model_type": "bert", "max_position_embeddings": 512 }), output, shape)
}

fn sentences(modules: &[(&str, &str)]) -> Folder {
    let modules =
        modules.iter().map(|(class, path)| json!({ "type": format!("sentence_transformers.{class}"), "path": path }));
    bert("last_hidden_state", &[None, None, Some(32)]).with("modules.json", modules.collect())
}

impl Folder {
    fn with(mut self, name: &'static str, value: Value) -> Self {
        self.files.insert(name, value);
        self
    }

    fn configured(mut self, field: &str, value: Value) -> Self {
        self.files.get_mut("config.json").expect("a configuration")[field] = value;
        self
    }

    fn input(mut self, name: &'static str, element: i32, shape: &[Option<i64>]) -> Self {
        self.inputs.insert(name, (element, shape.to_vec()));
        self
    }

    fn read(&self) -> Result<EncoderManifest, ModelError> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, value) in &self.files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, value.to_string()).expect("a file");
        }
        let files = ModelFiles::folder(folder.path()).expect("it is there");
        let facts = |(name, (element, shape)): (&&str, &(i32, Vec<Option<i64>>))| {
            ((*name).to_owned(), TensorFacts { element: *element, shape: shape.clone(), ..TensorFacts::default() })
        };
        let (name, element, shape) = self.output.clone();
        let facts = GraphFacts {
            inputs: self.inputs.iter().map(facts).collect(),
            outputs: [(name.to_owned(), TensorFacts { element, shape, ..TensorFacts::default() })].into(),
            ..GraphFacts::default()
        };
        let graph = Graph { name: "model.onnx".to_owned(), source: GraphSource::Memory(&[]), facts };
        EncoderManifest::read(graph, &files, &Configs::read(&files).expect("configurations"))
    }

    fn manifest(&self) -> EncoderManifest {
        self.read().expect("a manifest")
    }

    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let error = self.read().expect_err("it is refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "not all of {words:?} in: {error}");
    }
}

#[test]
fn a_folder_says_what_its_graph_is_for() {
    let (pooled, each) = ([None, Some(3)], [None, None, Some(3)]);
    let three = json!({ "0": "a", "1": "b", "2": "c" });
    for (architecture, output, shape, kind) in [
        ("BertModel", "last_hidden_state", &each[..], ModelKind::Embed),
        ("StaticEmbedding", "sentence_embedding", &pooled, ModelKind::Embed),
        ("NewForMaskedLM", "token_embeddings", &each, ModelKind::Embed),
        ("BertModel", "an_only_output", &each, ModelKind::Embed),
        ("BertForMaskedLM", "logits", &each, ModelKind::SparseEmbed),
        ("BertForSequenceClassification", "logits", &pooled, ModelKind::Classify),
        ("BertForSequenceClassification", "an_only_output", &pooled, ModelKind::Classify),
        ("BertForTokenClassification", "logits", &each, ModelKind::Entities),
        ("Strange", "logits", &pooled, ModelKind::Classify),
        ("Strange", "logits", &each, ModelKind::Entities),
    ] {
        let folder = bert(output, shape).configured("architectures", json!([architecture]));
        let manifest = folder.configured("id2label", three.clone()).manifest();
        assert_eq!(manifest.task.kind(), kind, "{architecture} with {output}");
    }
    let decoder = bert("logits", &each).configured("architectures", json!(["LlamaForCausalLM"]));
    decoder.refused(&["takes no past keys and values"]);
    bert("logits", &each).refused(&["takes no past keys and values", "architecture in its config.json"]);
}

#[test]
fn classes_and_scores_are_as_the_configuration_says() {
    let classifier = |width: Option<i64>| {
        bert("logits", &[None, width]).configured("architectures", json!(["BertForSequenceClassification"]))
    };
    let labels = |folder: Folder| match folder.manifest().task {
        Task::Classify { labels, multi_label } => (labels.join(","), multi_label),
        other => panic!("{other:?}"),
    };
    assert_eq!(labels(classifier(Some(3))), ("LABEL_0,LABEL_1,LABEL_2".to_owned(), false));
    assert_eq!(labels(classifier(None)), ("LABEL_0,LABEL_1".to_owned(), false), "what transformers takes");
    let named = json!({ "1": "bad", "0": "good" });
    let several = json!("multi_label_classification");
    let moderator = classifier(None).configured("id2label", named).configured("problem_type", several);
    assert_eq!(labels(moderator), ("good,bad".to_owned(), true));
    classifier(None).configured("id2label", json!({ "1": "bad" })).refused(&["id2label", "from 0 on"]);

    let logistic = |folder: Folder| match folder.manifest().task {
        Task::Rerank { logistic } => logistic,
        other => panic!("{other:?}"),
    };
    let identity = json!("torch.nn.modules.linear.Identity");
    assert!(logistic(classifier(Some(1))));
    let older = classifier(Some(1)).configured("sbert_ce_default_activation_function", identity.clone());
    assert!(!logistic(older));
    let newer =
        |name: &Value| classifier(Some(1)).configured("sentence_transformers", json!({ "activation_fn": name }));
    assert!(!logistic(newer(&identity)));
    assert!(logistic(newer(&json!("torch.nn.modules.activation.Sigmoid"))));
    newer(&json!("torch.nn.modules.activation.GELU")).refused(&["`GELU`", "Sigmoid and Identity"]);
}

#[test]
fn the_longest_text_has_a_place_for_each_token() {
    let embedding = |config: Value| folder(config, "last_hidden_state", &[None, None, Some(8)]);
    let stated = |tokens: u64| json!({ "max_seq_length": tokens });
    let roberta = || embedding(json!({ "model_type": "xlm-roberta", "max_position_embeddings": 514 }));
    let modern = || embedding(json!({ "model_type": "modernbert", "max_position_embeddings": 8192 }));
    let bert = || embedding(json!({ "model_type": "bert", "max_position_embeddings": 512 }));
    let named = |limit: Value| json!({ "model_max_length": limit });
    for (folder, tokens, padding) in [
        (roberta(), 512, 1),
        (roberta().with("sentence_bert_config.json", stated(514)), 512, 1),
        (roberta().with("sentence_bert_config.json", stated(128)), 128, 1),
        (roberta().configured("pad_token_id", json!(0)), 513, 0),
        (bert(), 512, 0),
        (bert().with("sentence_bert_config.json", stated(1024)), 512, 0),
        (bert().with("tokenizer_config.json", named(json!(128))), 128, 0),
        (bert().with("tokenizer_config.json", named(json!(1e30))), 512, 0),
        (modern().with("sentence_bert_config.json", json!({ "max_seq_length": null })), 8192, 0),
        (modern().with("sentence_bert_config.json", stated(9000)), 9000, 0),
        (embedding(json!({})).with("tokenizer_config.json", named(json!(77))), 77, 0),
    ] {
        let manifest = folder.manifest();
        assert_eq!((manifest.max_tokens, manifest.padding), (tokens, padding), "{:?}", folder.files);
    }
    embedding(json!({})).refused(&["max_seq_length", "max_position_embeddings", "model_max_length"]);
}

#[test]
fn inputs_and_the_output_are_taken_in_their_own_types() {
    const DYNAMIC: [Option<i64>; 2] = [None, None];
    let hidden = || bert("last_hidden_state", &[None, None, Some(8)]);
    let mut narrow = hidden().input("input_ids", 6, &DYNAMIC).input("position_ids", I64, &DYNAMIC);
    narrow.output.1 = 10;
    let io = narrow.manifest().io;
    assert_eq!((io.input_ids, io.attention_mask, io.token_type_ids), (Integer::I32, Some(Integer::I64), None));
    assert_eq!((io.position_ids, io.element), (Some((Integer::I64, Numbering::Zero)), Element::F16));
    let roberta = hidden().configured("model_type", json!("roberta")).input("position_ids", I64, &DYNAMIC);
    assert_eq!(roberta.manifest().io.position_ids, Some((Integer::I64, Numbering::Behind(1))));

    let types = || hidden().input("token_type_ids", I64, &DYNAMIC);
    assert!(types().manifest().segments && !hidden().manifest().segments);
    assert!(!types().configured("type_vocab_size", json!(1)).manifest().segments, "there is but one type");

    hidden().input("pixel_values", 1, &DYNAMIC).refused(&["`pixel_values`", "input_ids, attention_mask"]);
    hidden().input("attention_mask", 1, &DYNAMIC).refused(&["`attention_mask`", "element type 1", "int64"]);
    hidden().input("input_ids", I64, &[Some(1), Some(128)]).refused(&[
        "`input_ids`",
        "fixed size of 1",
        "dynamic axes",
    ]);
    let mut double = hidden();
    double.output.1 = 11;
    double.refused(&["`last_hidden_state`", "element type 11", "float32"]);
}

#[test]
fn modules_say_what_becomes_of_the_tokens() {
    let dense = |activation: &str| json!({ "in_features": 32, "out_features": 8, "activation_function": activation });
    let whole = || {
        sentences(&[("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_N"), ("Dense", "3_Dense")])
            .with("1_Pooling/config.json", json!({ "pooling_mode_lasttoken": true, "pooling_mode_cls_token": true }))
            .with("3_Dense/config.json", dense("torch.nn.modules.activation.Tanh"))
    };
    let Task::Embed { pooling, steps } = whole().manifest().task else { panic!("an embedding model") };
    assert_eq!(pooling, [Pooling::Cls, Pooling::Last]);
    assert!(
        matches!(&steps[..], [task::StepPlan::Normalise, task::StepPlan::Dense(dense)] if dense.shape.bias),
        "{steps:?}"
    );

    let mut finished = whole();
    finished.output = ("sentence_embedding", 1, vec![None, Some(8)]);
    let Task::Embed { steps, .. } = finished.manifest().task else { panic!("an embedding model") };
    assert_eq!(steps, [task::StepPlan::Normalise], "the graph has done the rest");

    whole().with("3_Dense/config.json", dense("torch.nn.modules.activation.GELU")).refused(&["3_Dense", "`GELU`"]);
    whole().with("3_Dense/config.json", json!({ "in_features": 32 })).refused(&["out_features", "above 0"]);
    whole().with("1_Pooling/config.json", json!({})).refused(&["1_Pooling", "no pooling", "pooling_mode_cls_token"]);
    whole().with("1_Pooling/config.json", json!({ "pooling_mode": "sum" })).refused(&["\"sum\"", "weightedmean"]);
    whole().with("modules.json", json!({ "type": "Pooling" })).refused(&["modules.json", "a list of modules"]);
    sentences(&[("Transformer", ""), ("Dense", "1_Dense"), ("Pooling", "2_Pooling")])
        .refused(&["Dense", "before Pooling"]);
    sentences(&[("Transformer", ""), ("LSTM", "1_LSTM")]).refused(&["`LSTM`", "it knows Transformer, Pooling"]);
    sentences(&[("MLMTransformer", ""), ("SpladePooling", "1_S")]).refused(&["last_hidden_state", "fill-mask"]);
}

#[test]
fn prompts_are_those_of_the_folder() {
    let prompted = |config: Value| {
        sentences(&[("Transformer", ""), ("Pooling", "1_Pooling")]).with("config_sentence_transformers.json", config)
    };
    let prompts = json!({ "query": "query: ", "document": null });
    let read = prompted(json!({ "prompts": prompts, "default_prompt_name": "query" })).manifest().rules;
    assert_eq!(read.prompts.by_name["query"], "query: ");
    assert_eq!((read.prompts.by_name["document"].as_str(), read.prompts.default.as_deref()), ("", Some("query")));
    assert!(read.trim && !read.lower_case);
    prompted(json!({ "prompts": prompts, "default_prompt_name": "q" })).refused(&["`q`", "document, query"]);
    prompted(json!({ "prompts": { "query": 5 } })).refused(&["prompt `query` is not a text"]);
    let apart = json!({ "pooling_mode_mean_tokens": true, "include_prompt": false });
    let pooled = |config| prompted(config).with("1_Pooling/config.json", apart.clone());
    pooled(json!({ "prompts": prompts })).refused(&["include_prompt"]);
    assert_eq!(pooled(json!({})).manifest().task.kind(), ModelKind::Embed, "without prompts it means nothing");
}
