//! The few fields that decide where a request goes, read without taking the body apart.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// What a request must say before a worker is sought.
#[derive(Debug, Deserialize)]
pub(crate) struct Peek<'a> {
    /// The model's name.
    #[serde(borrow)]
    pub(crate) model: Cow<'a, str>,
    /// Whether the answer is wanted piece by piece.
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    priority: Option<i64>,
}

impl<'a> Peek<'a> {
    /// Reads them. `None` where the body is not what it should be: the whole reading says in which way.
    pub(crate) fn parse(body: &'a [u8]) -> Option<Self> {
        let peek: Self = serde_json::from_slice(body).ok()?;
        Some(peek).filter(|peek| !peek.model.is_empty())
    }

    /// Whether the answer is wanted piece by piece.
    pub(crate) fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Higher goes first.
    pub(crate) fn priority(&self) -> i8 {
        self.priority.unwrap_or(0).clamp(i8::MIN.into(), i8::MAX.into()) as i8
    }
}

/// The name of the model alone; `None` as with [`Peek::parse`].
pub(crate) fn model(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        model: Cow<'a, str>,
    }
    let Named { model } = serde_json::from_slice(body).ok()?;
    Some(model.into_owned()).filter(|model| !model.is_empty())
}

/// The same body with another model; every other byte is as it was. `None` as with [`Peek::parse`].
pub(crate) fn with_model(body: &[u8], model: &str) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        model: &'a RawValue,
    }
    let Named { model: old } = serde_json::from_slice(body).ok()?;
    replaced(body, old, &serde_json::to_vec(model).ok()?)
}

/// The same body with an end to its answers: in place of what is there as `max_tokens`, or behind all else. `None` where it
/// is no object with something in it, or has two.
pub(crate) fn with_max_tokens(body: &[u8], tokens: u32) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(default, borrow, deserialize_with = "also_null")]
        max_tokens: Option<&'a RawValue>,
    }
    fn also_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
        Deserialize::deserialize(deserializer).map(Some)
    }
    let Told { max_tokens } = serde_json::from_slice(body).ok()?;
    match max_tokens {
        Some(old) => replaced(body, old, tokens.to_string().as_bytes()),
        None => {
            let open = body.trim_ascii_end().strip_suffix(b"}")?;
            Some([open, format!(",\"max_tokens\":{tokens}}}").as_bytes()].concat().into())
        }
    }
}

/// A body with another value in place of one that borrows from it.
fn replaced(body: &[u8], old: &RawValue, new: &[u8]) -> Option<Bytes> {
    // So where it begins there is a difference of addresses.
    let start = (old.get().as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let (before, rest) = body.split_at_checked(start)?;
    let after = rest.strip_prefix(old.get().as_bytes())?;
    Some([before, new, after].concat().into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    #[test]
    fn a_model_is_replaced_and_no_other_byte() {
        for (body, expected) in [
            (r#"{"model":"m"}"#, r#"{"model":"other"}"#),
            ("{ \"model\" :\t\"m\" , \"model2\":1.50}", "{ \"model\" :\t\"other\" , \"model2\":1.50}"),
            (r#"{"mod\u0065l":"\u006d","x":1E5}"#, r#"{"mod\u0065l":"other","x":1E5}"#),
            (
                r#"{"x":{"model":"m"},"y":"\"model\":\"m\"","model":"m","z":[{"model":"m"}]}"#,
                r#"{"x":{"model":"m"},"y":"\"model\":\"m\"","model":"other","z":[{"model":"m"}]}"#,
            ),
        ] {
            assert_eq!(with_model(body.as_bytes(), "other").as_deref(), Some(expected.as_bytes()), "{body}");
        }
        let quoted = with_model(br#"{"model":"m"}"#, "a\"b\\c\u{7}").expect("a request");
        assert_eq!(model(&quoted).as_deref(), Some("a\"b\\c\u{7}"));
    }

    #[test]
    fn an_end_is_put_in_place_of_what_is_there_or_behind_all_else() {
        for (body, expected) in [
            (r#"{"model":"m"}"#, r#"{"model":"m","max_tokens":7}"#),
            ("{\"x\":{\"max_tokens\":1}}\n", "{\"x\":{\"max_tokens\":1},\"max_tokens\":7}"),
            (r#"{"max_tokens" : null, "model":"m"}"#, r#"{"max_tokens" : 7, "model":"m"}"#),
            (r#"{"max\u005ftokens":9e9}"#, r#"{"max\u005ftokens":7}"#),
        ] {
            assert_eq!(with_max_tokens(body.as_bytes(), 7).as_deref(), Some(expected.as_bytes()), "{body}");
        }
        for body in ["", "[]", r#"{"max_tokens":1,"max_tokens":1}"#, r#"{"model":"m"} x"#] {
            assert_eq!(with_max_tokens(body.as_bytes(), 7), None, "{body}");
        }
    }

    #[test]
    fn a_body_that_names_no_model_or_two_is_left_alone() {
        for body in ["", "[]", "{}", r#"{"model":"m"} x"#, r#"{"model":"m","model":"m"}"#, r#"{"model":"m""#] {
            assert_eq!(with_model(body.as_bytes(), "other"), None, "{body}");
        }
    }

    /// JSON with names like those that are looked for.
    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!("model")),
            Just(json!("\"model\":\"m\"")),
            any::<String>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            Just(Value::Null),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let key = prop_oneof![Just("model".to_owned()), any::<String>()];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_else_a_body_holds_stays(
            before in prop::collection::btree_map(any::<String>(), values(), 0..4),
            after in prop::collection::btree_map(any::<String>(), values(), 0..4),
            old: String, new: String, pretty: bool,
        ) {
            let mut fields = Map::new();
            let others = |fields: std::collections::BTreeMap<String, Value>| {
                fields.into_iter().filter(|(name, _)| name != "model")
            };
            fields.extend(others(before));
            fields.insert("model".to_owned(), Value::from(old));
            fields.extend(others(after));
            let written = |fields: &Map<String, Value>| match pretty {
                true => serde_json::to_vec_pretty(fields).expect("JSON"),
                false => serde_json::to_vec(fields).expect("JSON"),
            };
            let body = written(&fields);
            fields.insert("model".to_owned(), Value::from(new.clone()));
            prop_assert_eq!(with_model(&body, &new).expect("a request"), written(&fields));
        }

        #[test]
        fn no_bytes_make_it_panic(body: Vec<u8>, text: String) {
            let _ = (with_max_tokens(&body, 1), with_max_tokens(text.as_bytes(), 1), with_model(&body, "m"), with_model(text.as_bytes(), "m"), Peek::parse(&body), model(&body));
        }
    }

    #[test]
    fn a_few_fields_are_read_and_the_rest_is_passed_over() {
        let body =
            br#"{"messages":[{"role":"user","content":"a\"model\":1"}],"x":{"y":[1,{}]},"model":"m","stream":true}"#;
        let peek = Peek::parse(body).expect("a request");
        assert_eq!((&*peek.model, peek.stream(), peek.priority()), ("m", true, 0));
        let peek = Peek::parse(br#"{"model":"m\u00e9","stream":null,"priority":1000}"#).expect("a request");
        assert_eq!((&*peek.model, peek.stream(), peek.priority()), ("mé", false, i8::MAX));
    }

    #[test]
    fn what_is_no_request_is_not_peeked_at() {
        for body in
            ["", "[]", "{}", r#"{"model":""}"#, r#"{"model":1}"#, r#"{"model":"m","stream":1}"#, r#"{"model":"m"} x"#]
        {
            assert!(Peek::parse(body.as_bytes()).is_none(), "{body}");
        }
        assert_eq!(model(br#"{"model":"m","stream":1}"#).as_deref(), Some("m"));
        for body in ["", "[]", "{}", r#"{"model":""}"#, r#"{"model":1}"#, r#"{"model":"m"} x"#] {
            assert_eq!(model(body.as_bytes()), None, "{body}");
        }
    }
}
