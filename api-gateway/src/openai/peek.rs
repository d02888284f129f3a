//! The few fields that decide where a request goes, read without taking the body apart.

use std::borrow::Cow;

use serde::Deserialize;

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

#[cfg(test)]
mod tests {
    use super::*;

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
