//! A model's `config.pbtxt`: no text breaks the reader, and what is read is written alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_worker::tensor::pbtxt::{self, Field, Message, Value};
use muster_worker::tensor::settings::Settings;

fuzz_target!(|text: &str| {
    let _ = Settings::read("m", text);
    let Ok(message) = pbtxt::parse(text) else { return };
    let again = pbtxt::parse(&message.to_string()).expect("our own words");
    assert_eq!(without_lines(again), without_lines(message));
});

/// The same with every field on no line: what is written anew lies elsewhere.
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
