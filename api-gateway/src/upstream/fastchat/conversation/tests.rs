//! Expectations worked out by hand from FastChat's code.

use super::super::tests::{message, template};
use super::*;

fn chat(turns: &[(&str, &str)]) -> Chat {
    Chat { messages: turns.iter().map(|(role, text)| message(role, text)).collect(), ..Chat::default() }
}

#[test]
fn every_style_renders_as_in_fastchat() {
    let expected = [
        "<S>|U: a|A: b|U: c|A:",
        "<S>|U: a|A: b^U: c|A:",
        "<S>|U: a|A: b|U: c|A: ",
        "<S>Ua|Ab|Uc|A",
        "<S>Ua|Ab^Uc|A",
        "<S>|U\na|A\nb|U\nc|A\n",
        "<S>a A b^U c|A",
        "<S>|[Round 0]|U：a|A：b|[Round 1]|U：c|A：",
        "<S>|\nU\na|\nA\nb|\nU\nc|\nA\n",
        "<S><s>U:a|\nA:b^\n<s>U:c|\nA:",
        "<S>U:\na|A:\nb^\n\nU:\nc|A:\n",
        "<S>U: a\n\nA: b\n\nU: c\n\nA:",
        "<S>U: <s>a</s>A: <s>b</s>U: <s>c</s>A: <s>",
        "<S>|U:\na|A:\nb|U:\nc|A:\n",
        "<S>|U: a|A: b|U: c|A:",
        "<S>U\naA\nbU\ncA",
        "<S>U: a|A: b^U: c|A:",
        "<S>|U:\na|A: ^bU:\nc|A: ^",
        "<S>^a<n>b<n>c|",
        "<bos><start_of_turn>U\na|<start_of_turn>A\nb|<start_of_turn>U\nc|<start_of_turn>A\n",
        "<S>|U: c|A:",
        "<S>\nU: a\nA: b\nU: c\nA:",
    ];
    let turns = chat(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
    for (style, expected) in (1..).zip(expected) {
        let template = Conversation { system_message: "S".to_owned(), ..template(style) };
        assert_eq!(render(&template, &turns).as_deref(), Ok(expected), "style {style}");
    }
    assert_eq!(render(&template(23), &turns).map_err(|problem| problem.kind), Err(Kind::Upstream));
}

#[test]
fn styles_differ_in_what_they_write_without_a_system_message() {
    let expected = [
        (1, "|U: a|A:"),
        (6, "U\na|A\n"),
        (7, "[INST] a A"),
        (8, "[Round 0]|U：a|A："),
        (9, "U\na|\nA\n"),
        (15, "U: a|A:"),
        (16, "U\naA"),
        (18, "U:\na|A: ^"),
        (19, "a|"),
        (22, "\nU: a\nA:"),
    ];
    for (style, expected) in expected {
        let template = Conversation { system_template: SYSTEM.to_owned(), ..template(style) };
        assert_eq!(render(&template, &chat(&[("user", "a")])).as_deref(), Ok(expected), "style {style}");
    }
}

#[test]
fn the_last_system_message_counts() {
    let turns = chat(&[("system", "one"), ("user", "a"), ("system", "two")]);
    let template = Conversation { system_message: "zero".to_owned(), ..template(1) };
    assert_eq!(render(&template, &turns).as_deref(), Ok("<two>|U: a|A:"));
}

#[test]
fn examples_come_first_and_count_as_turns() {
    let template = Conversation { messages: vec![("X".to_owned(), "x".to_owned())], offset: 1, ..template(2) };
    assert_eq!(render(&template, &chat(&[("user", "a")])).as_deref(), Ok("<>|X: x|U: a^A:"));
}

#[test]
fn a_turn_without_text_is_an_open_turn() {
    let mut turns = chat(&[("user", "a"), ("assistant", "")]);
    turns.messages[0].content = None;
    assert_eq!(render(&template(1), &turns).as_deref(), Ok("<>|U:A:A:"));
}

#[test]
fn chatglm2_counts_rounds_from_one() {
    let template = Conversation { name: "chatglm2".to_owned(), ..template(8) };
    assert_eq!(render(&template, &chat(&[("user", "a")])).as_deref(), Ok("<>|[Round 1]|U：a|A："));
}

#[test]
fn rwkv_and_yuan_clean_their_texts() {
    assert_eq!(render(&template(12), &chat(&[("user", "a\r\n\r\nb")])).as_deref(), Ok("<>U: a\nb\n\nA:"));
    assert_eq!(render(&template(19), &chat(&[("user", "an>")])).as_deref(), Ok("a|"));
}

#[test]
fn doubled_braces_of_a_system_template_are_braces() {
    let template = Conversation { system_template: "{{{system_message}}}".to_owned(), ..template(1) };
    assert_eq!(render(&template, &chat(&[("system", "{{s}}")])).as_deref(), Ok("{{{s}}}|A:"));
}

#[test]
fn what_a_template_has_no_place_for_is_refused() {
    let refused = |style, chat: &Chat| render(&template(style), chat).map_err(|problem| (problem.kind, problem.param));
    let of = |param: &str| Err((Kind::Invalid, Some(param.to_owned())));
    assert_eq!(refused(1, &chat(&[("tool", "a")])), of("messages"));
    assert_eq!(refused(20, &chat(&[("system", "a")])), of("messages"));
    let mut with_tools = chat(&[("user", "a")]);
    with_tools.messages[0].more.insert("tool_calls".to_owned(), Value::Null);
    with_tools.template_arguments.insert("tools".to_owned(), serde_json::json!([]));
    assert!(refused(1, &with_tools).is_ok(), "empty fields say nothing");
    with_tools.template_arguments.insert("tools".to_owned(), serde_json::json!([{}]));
    assert_eq!(refused(1, &with_tools), of("tools"));
    let mut named = chat(&[("user", "a")]);
    named.messages[0].more.insert("name".to_owned(), "Eve".into());
    assert_eq!(refused(1, &named), of("messages"));
}
