use proptest::prelude::*;

use super::*;

fn word(name: &str, line: usize, word: &str) -> Field {
    Field { name: name.to_owned(), line, value: Value::Word(word.to_owned()) }
}

#[test]
fn all_spellings_of_the_format_are_understood() {
    let text = "# a comment\nname: \"a\\x41\\101\\n\" 'b' # more\nmax_batch_size: 8; rate: -1.5e-3\n\
                input [ { dims: [ 1, -1 ] }, { dims: 2 } ]\noutput < kind: KIND_CPU >, [a.b/c.d]: true";
    let message = parse(text).expect("it is well formed");
    let dims = |lines: &[(usize, &str)]| {
        Value::Message(Message(lines.iter().map(|(line, size)| word("dims", *line, size)).collect()))
    };
    let field = |name: &str, line, value| Field { name: name.to_owned(), line, value };
    let expected = [
        field("name", 2, Value::Text(b"aAA\nb".to_vec())),
        word("max_batch_size", 3, "8"),
        word("rate", 3, "-1.5e-3"),
        field("input", 4, dims(&[(4, "1"), (4, "-1")])),
        field("input", 4, dims(&[(4, "2")])),
        field("output", 5, Value::Message(Message(vec![word("kind", 5, "KIND_CPU")]))),
        word("[a.b/c.d]", 5, "true"),
    ];
    assert_eq!(message.0, expected);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    for (text, line, words) in [
        ("a: 1\nb", 2, "expected `:` or `{` after `b`"),
        ("a {\n b: 1\n", 2, "expected `}`"),
        ("a: \"b\nc\"", 1, "no closing quote"),
        ("a: [1 2]", 1, "expected `,` or `]`"),
        ("a: '\\q'", 1, "escape"),
        ("a: }", 1, "found `}`"),
        ("\n\n: 1", 3, "expected the name of a field"),
        ("8: 1", 1, "expected the name of a field"),
        ("a: -", 1, "a number"),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.line == line && error.reason.contains(words), "{text}: {error}");
    }
    let deep = "a{".repeat(100_000);
    assert!(parse(&deep).expect_err("too deep").reason.contains("too deep"));
}

fn message() -> impl Strategy<Value = Message> {
    let name = "[a-z_][a-z0-9_]{0,5}";
    let word = "[a-zA-Z_][a-zA-Z0-9_.]{0,5}|-?[1-9][0-9]{0,5}";
    let leaf = prop_oneof![any::<Vec<u8>>().prop_map(Value::Text), word.prop_map(Value::Word)];
    let fields = move |value: BoxedStrategy<Value>| {
        let field = (name, value).prop_map(|(name, value)| Field { name, line: 0, value });
        prop::collection::vec(field, 0..4).prop_map(Message)
    };
    fields(leaf.prop_recursive(3, 20, 4, move |inner| fields(inner.boxed()).prop_map(Value::Message)).boxed())
}

fn without_lines(message: Message) -> Message {
    let field = |field: Field| {
        let value = match field.value {
            Value::Message(message) => Value::Message(without_lines(message)),
            other => other,
        };
        Field { line: 0, value, ..field }
    };
    Message(message.0.into_iter().map(field).collect())
}

proptest! {
    #[test]
    fn what_is_written_is_read_alike(message in message()) {
        let read = parse(&message.to_string()).expect("our own words");
        prop_assert_eq!(without_lines(read), message);
    }

    #[test]
    fn no_text_breaks_it(text in "[ \\na-z0-9:{}<>\\[\\],;\"'\\\\#.+-]{0,60}") {
        if let Ok(message) = parse(&text) {
            prop_assert_eq!(without_lines(parse(&message.to_string()).expect("our own words")), without_lines(message));
        }
    }
}
