use serde_json::json;

use super::*;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, SpecialTokens::default()).unwrap()
}

fn chat(messages: Value, arguments: Value) -> Chat {
    serde_json::from_value(json!({ "messages": messages, "template_arguments": arguments })).unwrap()
}

fn render(source: &str) -> Result<String, TemplateError> {
    template(source).render(&chat(json!([{ "role": "user", "content": "hi" }]), json!({})))
}

/// Renders every case of `tests/cases.json`; `tests/expected.py` had the answers from Python's Jinja.
#[test]
fn prompts_are_those_of_python() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chat_template/tests");
    let cases = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() > 30);
    let config = json!({ "bos_token": "<bos>", "eos_token": { "content": "<eos>", "lstrip": false } });
    for case in cases {
        let path = folder.join(case["template"].as_str().unwrap());
        let source = std::fs::read_to_string(path).unwrap();
        let template = ChatTemplate::from_files(Some(&source), Some(&config)).unwrap().unwrap();
        let rendered = template.render(&chat(case["messages"].clone(), case["arguments"].clone()));
        let answer = match rendered {
            Ok(prompt) => json!({ "prompt": prompt }),
            Err(TemplateError::Raised(message)) => json!({ "raises": message }),
            Err(TemplateError::Render { .. }) => json!({ "fails": true }),
            Err(other) => panic!("{other} for {case:#}"),
        };
        let (ours, right) = (answer["prompt"].as_str(), case["answer"]["prompt"].as_str());
        if let (Some(ours), Some(right)) = (ours, right) {
            assert_eq!(ours.lines().collect::<Vec<_>>(), right.lines().collect::<Vec<_>>());
        }
        assert_eq!(answer, case["answer"], "{case:#}");
    }
}

#[test]
fn a_turn_without_text_is_empty_and_arguments_are_objects() {
    let call = |arguments: Value| json!({ "function": { "name": "f", "arguments": arguments } });
    let calls = [json!("{\"b\":1, \"a\":2}"), json!(""), json!("[1"), json!("[1]"), json!({ "x": 1 })].map(call);
    let messages = json!([{ "role": "assistant", "content": null, "tool_calls": calls }]);
    let source = "{% for m in messages %}[{{ m.content }}]{% for call in m.tool_calls %} {{ call.function.arguments | tojson }}{% endfor %}{% endfor %}";
    let prompt = template(source).render(&chat(messages, json!({}))).unwrap();
    assert_eq!(prompt, r#"[] {"b": 1, "a": 2} {} "[1" "[1]" {"x": 1}"#);
}

#[test]
fn what_a_client_sends_besides_is_there_for_the_template() {
    let messages = json!([{ "role": "user", "content": "hi", "name": "bob" }]);
    let source = "{{ messages[0].name }} {{ enable_thinking }} {{ add_generation_prompt }} {{ bos_token }}";
    let arguments = json!({ "enable_thinking": false, "add_generation_prompt": false, "messages": [] });
    assert_eq!(template(source).render(&chat(messages, arguments)).unwrap(), "bob False False ");
}

#[test]
fn a_template_file_wins_over_the_configuration() {
    let config = json!({ "chat_template": "config" });
    let hello = chat(json!([]), json!({}));
    let prompt = |jinja, config| {
        let template = ChatTemplate::from_files(jinja, config).unwrap()?;
        Some(template.render(&hello).unwrap())
    };
    assert_eq!(prompt(Some("file"), Some(&config)).as_deref(), Some("file"));
    assert_eq!(prompt(None, Some(&config)).as_deref(), Some("config"));
    assert_eq!(prompt(None, None), None);
    assert_eq!(prompt(None, Some(&json!({ "chat_template": null, "bos_token": null }))), None);
}

#[test]
fn of_several_templates_the_one_for_tools_is_taken_with_tools() {
    let entry = |name: &str| json!({ "name": name, "template": format!("for {name}") });
    let config = json!({ "chat_template": [entry("rag"), entry("tool_use"), entry("default")] });
    let template = ChatTemplate::from_files(None, Some(&config)).unwrap().unwrap();
    let prompt = |arguments| template.render(&chat(json!([]), arguments)).unwrap();
    assert_eq!(prompt(json!({})), "for default");
    assert_eq!(prompt(json!({ "tools": [] })), "for default");
    assert_eq!(prompt(json!({ "tools": [{}] })), "for tool_use");
    for wrong in [json!({ "chat_template": [entry("rag")] }), json!({ "chat_template": 1 })] {
        assert_eq!(ChatTemplate::from_files(None, Some(&wrong)).unwrap_err(), TemplateError::NoTemplate);
    }
}

#[test]
fn a_broken_template_is_refused_with_its_line() {
    let error = ChatTemplate::new("a\n\n{% if %}", SpecialTokens::default()).unwrap_err();
    assert!(matches!(error, TemplateError::Compile { line: 3, .. }), "{error}");
    assert!(error.to_string().starts_with("chat template does not compile, line 3: syntax error: "), "{error}");
}

#[test]
fn a_failure_tells_its_line() {
    let error = render("a\n{{ messages[5].role }}").unwrap_err();
    assert!(matches!(error, TemplateError::Render { line: 2, .. }), "{error}");
    for source in [
        "{{ nothing | tojson }}",
        "{{ messages | tojson(colour=1) }}",
        "{{ nothing() }}",
        "{{ 1 | tojson(indent=99) }}",
    ] {
        assert!(matches!(render(source), Err(TemplateError::Render { line: 1, .. })), "{source}");
    }
}

#[test]
fn what_a_template_raises_is_told_as_it_is() {
    for source in [
        "{{ raise_exception('no, thanks') }}",
        "{% macro deny(why) %}{{ raise_exception(why) }}{% endmacro %}\n{% for m in messages %}{{ deny('no, thanks') }}{% endfor %}",
    ] {
        assert_eq!(render(source), Err(TemplateError::Raised("no, thanks".to_owned())));
    }
}

#[test]
fn a_template_that_goes_on_and_on_is_stopped() {
    let source = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    assert_eq!(render(source), Err(TemplateError::TooLong));
}

#[test]
fn a_long_conversation_is_not_too_long() {
    let turn = json!({ "role": "user", "content": "hi" });
    let source = include_str!("tests/phi3.jinja");
    let prompt = template(source).render(&chat(Value::Array(vec![turn; 20_000]), json!({}))).unwrap();
    assert_eq!(prompt.len(), 20_000 * "<|user|>\nhi<|end|>\n".len() + "<|assistant|>\n".len());
}

#[test]
fn a_template_reads_no_files() {
    for source in ["{% include '/etc/hostname' %}", "{% import 'Cargo.toml' as a %}", "{% extends '../Cargo.toml' %}"] {
        let error = render(source).unwrap_err();
        assert!(error.to_string().contains("template not found"), "{error}");
    }
}

#[test]
fn today_has_a_date() {
    let date = render("{{ strftime_now('%Y-%m-%d') }}").unwrap();
    assert_eq!(date.len(), "2025-01-01".len());
    assert!(matches!(render("{{ strftime_now('%!') }}"), Err(TemplateError::Render { .. })));
}
