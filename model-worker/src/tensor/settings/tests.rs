use muster_shared::tensor::Datatype;

use super::*;

fn port(name: &str, datatype: Datatype, sizes: &[i64]) -> Port {
    let dimension = |&size: &i64| Dimension { size: usize::try_from(size).ok(), symbol: None };
    Port { name: name.to_owned(), datatype, dimensions: Some(sizes.iter().map(dimension).collect()), required: true }
}

fn graph() -> Ports {
    Ports { inputs: vec![port("x", Datatype::Fp32, &[-1, -1])], outputs: vec![port("y", Datatype::Int64, &[-1, 3])] }
}

#[test]
fn a_whole_configuration_is_read() {
    let text = r#"
        name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 16
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
        output { name: "y" data_type: TYPE_INT64 dims: 3 label_filename: "labels.txt" }
        version_policy: { specific: { versions: [ 1, 3 ] } }
        instance_group [ { kind: KIND_CPU count: 2 } ]
        dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
        default_model_filename: "net.onnx"
        parameters { key: "k" value: { string_value: "v" } }
    "#;
    let settings = Settings::read("m", text).expect("it is well formed");
    assert_eq!(settings.warnings, [""; 0]);
    let Complete { config, ports } = complete(&settings, &graph()).expect("it fits the graph");
    assert_eq!(config.version_policy, VersionPolicy::Specific { versions: vec![1, 3] });
    assert_eq!((config.max_batch_size, config.instance_group[0].count), (16, 2));
    assert_eq!((config.input[0].dims.as_slice(), config.output[0].dims.as_slice()), (&[4][..], &[3][..]));
    assert_eq!(config.output[0].label_filename, "labels.txt");
    assert_eq!(config.default_model_filename, "net.onnx");
    assert_eq!(config.parameters["k"].string_value, "v");
    assert_eq!(ports.inputs[0].sizes(), [-1, 4], "narrowed");
    let batching = declared(&config).expect("it is declared");
    assert_eq!((batching.largest, batching.delay), (16, Duration::from_micros(100)));
}

#[test]
fn without_a_configuration_the_graph_says_all() {
    let Complete { config, ports } = complete(&Settings::usual("m"), &graph()).expect("nothing to contradict");
    assert_eq!((config.name.as_str(), config.platform.as_str()), ("m", PLATFORM));
    assert_eq!(config.input[0].dims, [-1, -1]);
    assert_eq!(ports, graph());
    assert_eq!(declared(&config), None);
}

#[test]
fn unknown_fields_are_named_with_their_lines_and_change_nothing() {
    let text = "max_batch_size: 4\ninput {\n name: \"x\"\n data_type: TYPE_FP32\n dims: 4\n colour: 3\n reshape { }\n}\n\
                sequence_batching { }\noptimization { }";
    let settings = Settings::read("m", text).expect("it is well formed");
    assert_eq!(
        settings.warnings,
        [
            "unknown fields: input.colour (line 6), sequence_batching (line 9)",
            "known to Triton and without effect here: input.reshape (line 7), optimization (line 10)"
        ]
    );
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    for (text, words) in [
        ("name: \"other\"", "`other`"),
        ("platform: \"tensorflow_graphdef\"", "tensorflow_graphdef"),
        ("backend: \"python\"", "muster runs `onnxruntime`"),
        ("max_batch_size: many", "line 1: max_batch_size"),
        ("max_batch_size: -1", "line 1: max_batch_size"),
        ("dynamic_batching { }", "max_batch_size is 0"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }", "preferred_batch_size holds 8"),
        ("\ninput { name: \"x\" data_type: TYPE_FP8 }", "line 2: data_type of `x` is `TYPE_FP8`"),
        ("instance_group { kind: KIND_GPU }", "KIND_GPU"),
        ("instance_group { count: 0 }", "count is 0"),
        ("version_policy { latest { num_versions: 0 } }", "num_versions is 0"),
        ("version_policy { specific { } }", "names no versions"),
        ("name: 3", "line 1: name is not a text in quotes"),
        ("input: 3", "line 1: input is not a message"),
    ] {
        let error = Settings::read("m", text).expect_err(text);
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn a_configuration_that_contradicts_the_graph_names_both() {
    for (text, words) in [
        ("input { name: \"z\" data_type: TYPE_FP32 dims: 4 }", &["`z`", "the graph has x"][..]),
        (
            "input { name: \"x\" data_type: TYPE_INT8 dims: [-1, 4] }",
            &["INT8 in the configuration", "FP32 in the graph"],
        ),
        ("input { name: \"x\" data_type: TYPE_FP32 dims: [4] }", &["dims [4]", "shape [-1, -1]"]),
        ("output { name: \"y\" data_type: TYPE_INT64 dims: [-1, 5] }", &["dims [-1, 5]", "shape [-1, 3]"]),
        ("max_batch_size: 2 output { name: \"y\" data_type: TYPE_INT64 dims: [-1, 3] }", &["-1 in front", "[-1, 3]"]),
    ] {
        let settings = Settings::read("m", text).expect("it is well formed");
        let error = complete(&settings, &graph()).expect_err(text);
        words.iter().for_each(|word| assert!(error.contains(word), "{text}: {error}"));
    }
    let fixed = Ports { inputs: vec![port("x", Datatype::Fp32, &[2, 3])], outputs: vec![] };
    let error = complete(&Settings::read("m", "max_batch_size: 2").expect("fine"), &fixed).expect_err("no batch");
    assert!(error.contains("[2, 3]") && error.contains("max_batch_size"), "{error}");
}
