//! The bodies of `/tokenize` and `/detokenize`, in vLLM's shape.

use muster_shared::generate::{Chat, Prompt};
use muster_shared::problem::Problem;
use muster_shared::text::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use serde::Serialize;
use serde_json::Value;

use super::chat::{messages, template_arguments};
use super::endpoint::Endpoint;
use super::fields::{self, Fields, missing};
use super::texts::{end, refuse};
use super::{ReplyHead, unsupported};
use crate::observe::Route;

/// Most token ids of one request: more than any context has.
const TOKENS: usize = 1 << 20;
/// What vLLM knows besides, and a worker does not.
const UNSUPPORTED: &[(&str, &str)] = &[("chat_template", "a model's own template is used; leave it out")];

/// The endpoint that tells tokens.
pub(crate) struct TokenizeBody;

/// Whether the texts of the tokens are told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WithTexts(bool);

impl Endpoint for TokenizeBody {
    const ROUTE: Route = Route::Tokenize;
    const PREFIX: &'static str = "tokenize";
    type Call = TokenizeRequest;
    type Form = WithTexts;
    type Reply = TokenizeReply;

    fn parse(body: &[u8]) -> Result<(TokenizeRequest, WithTexts), Problem> {
        let mut fields = fields::object(body)?;
        let model = fields.required_string("model")?;
        refuse(&mut fields, UNSUPPORTED)?;
        unsupported::refuse_in_template(&mut fields)?;
        let special = fields.boolean("add_special_tokens")?;
        let (prompt, messages) = (fields.string("prompt")?, fields.take("messages"));
        let conversation = conversation(&mut fields)?;
        let tokenize = match (prompt, messages) {
            (Some(text), None) => {
                TokenizeRequest { model, prompt: Prompt::Text(text), add_special_tokens: special.unwrap_or(true) }
            }
            (None, Some(messages)) => of_messages(model, messages, conversation, special)?,
            (Some(_), Some(_)) => {
                return Err(Problem::invalid("messages", "'messages' cannot stand beside 'prompt'; send one of them"));
            }
            (None, None) => return Err(missing("prompt")),
        };
        let texts = WithTexts(fields.boolean("return_token_strs")?.unwrap_or(false));
        end(fields)?;
        Ok((tokenize, texts))
    }

    fn reply(
        _: ReplyHead,
        _: &TokenizeRequest,
        WithTexts(with_texts): WithTexts,
        answer: TokenizeResponse,
    ) -> Result<TokenizeReply, Problem> {
        Ok(TokenizeReply {
            count: answer.tokens.len(),
            max_model_len: answer.max_tokens,
            tokens: answer.tokens,
            token_strs: with_texts.then_some(answer.pieces),
        })
    }
}

/// A conversation still without its messages.
fn conversation(fields: &mut Fields) -> Result<Chat, Problem> {
    const NAME: &str = "add_generation_prompt";
    let mut arguments = template_arguments(fields)?;
    if let Some(add) = fields.boolean(NAME)? {
        arguments.insert(NAME.to_owned(), Value::Bool(add));
    }
    Ok(Chat { messages: Vec::new(), template_arguments: arguments })
}

fn of_messages(
    model: String,
    turns: Value,
    conversation: Chat,
    special: Option<bool>,
) -> Result<TokenizeRequest, Problem> {
    const NAME: &str = "add_special_tokens";
    if special == Some(true) {
        let message = format!("'{NAME}' must be false for 'messages': the model's template has special tokens itself");
        return Err(Problem::invalid(NAME, message));
    }
    let prompt = Prompt::Chat(Chat { messages: messages::parse(turns)?, ..conversation });
    Ok(TokenizeRequest { model, prompt, add_special_tokens: false })
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct TokenizeReply {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// The endpoint that tells the text of tokens.
pub(crate) struct DetokenizeBody;

impl Endpoint for DetokenizeBody {
    const ROUTE: Route = Route::Detokenize;
    const PREFIX: &'static str = "detokenize";
    type Call = DetokenizeRequest;
    type Form = ();
    type Reply = DetokenizeReply;

    fn parse(body: &[u8]) -> Result<(DetokenizeRequest, ()), Problem> {
        let mut fields = fields::object(body)?;
        let model = fields.required_string("model")?;
        let tokens = fields.token_ids("tokens", TOKENS)?.ok_or_else(|| missing("tokens"))?;
        end(fields)?;
        Ok((DetokenizeRequest { model, tokens }, ()))
    }

    fn reply(
        _: ReplyHead,
        _: &DetokenizeRequest,
        (): (),
        answer: DetokenizeResponse,
    ) -> Result<DetokenizeReply, Problem> {
        Ok(DetokenizeReply { prompt: answer.text })
    }
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct DetokenizeReply {
    prompt: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openai::texts::assert_refused;

    fn parse(body: Value) -> (TokenizeRequest, WithTexts) {
        TokenizeBody::parse(body.to_string().as_bytes()).unwrap()
    }

    fn head() -> ReplyHead {
        ReplyHead { id: String::new(), created: 7, model: "m".to_owned() }
    }

    #[test]
    fn a_text_gets_special_tokens_unless_they_are_unwanted() {
        let (request, WithTexts(texts)) = parse(json!({ "model": "m", "prompt": "", "return_token_strs": true }));
        assert_eq!((request.prompt, request.add_special_tokens, texts), (Prompt::Text(String::new()), true, true));
        let (request, WithTexts(texts)) = parse(json!({ "model": "m", "prompt": "a", "add_special_tokens": false }));
        assert!(!request.add_special_tokens && !texts);
    }

    #[test]
    fn a_conversation_is_what_the_template_makes_of_it() {
        let (request, _) = parse(json!({
            "model": "m", "messages": [{ "role": "user", "content": "hi" }], "add_generation_prompt": false,
            "chat_template_kwargs": { "x": 1 }, "tools": [], "add_special_tokens": false,
        }));
        let Prompt::Chat(chat) = request.prompt else { panic!("a conversation") };
        assert_eq!(chat.messages.len(), 1);
        assert_eq!(Value::Object(chat.template_arguments), json!({ "x": 1, "add_generation_prompt": false }));
        assert!(!request.add_special_tokens);
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_field() {
        assert_refused(
            &json!({ "model": "m", "prompt": "hi" }),
            TokenizeBody::parse,
            [
                ("model", json!(null), "model"),
                ("prompt", json!(null), "prompt"),
                ("prompt", json!(["a"]), "prompt"),
                ("messages", json!([]), "messages"),
                ("add_special_tokens", json!("no"), "add_special_tokens"),
                ("return_token_strs", json!(1), "return_token_strs"),
                ("add_generation_prompt", json!(1), "add_generation_prompt"),
                ("chat_template_kwargs", json!([]), "chat_template_kwargs"),
                ("chat_template", json!("x"), "chat_template"),
                ("tools", json!([{}]), "tools"),
                ("continue_final_message", json!(true), "continue_final_message"),
                ("user", json!(1), "user"),
            ],
        );
        assert_refused(
            &json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] }),
            TokenizeBody::parse,
            [
                ("messages", json!([]), "messages"),
                ("messages", json!("hi"), "messages"),
                ("messages", json!([{ "role": "user" }]), "messages[0].content"),
                ("add_special_tokens", json!(true), "add_special_tokens"),
            ],
        );
        assert_refused(
            &json!({ "model": "m", "tokens": [] }),
            DetokenizeBody::parse,
            [
                ("model", json!(null), "model"),
                ("tokens", json!(null), "tokens"),
                ("tokens", json!("1"), "tokens"),
                ("tokens", json!([1, "2"]), "tokens"),
                ("tokens", json!([1.5]), "tokens"),
                ("tokens", json!([-1]), "tokens"),
                ("user", json!(1), "user"),
            ],
        );
    }

    #[test]
    fn the_answers_have_the_shape_that_vllm_gives_them() {
        let (call, _) = parse(json!({ "model": "m", "prompt": "a" }));
        let reply = |texts| {
            let answer = TokenizeResponse { tokens: vec![1, 7], pieces: vec!["a".into(), "b".into()], max_tokens: 9 };
            serde_json::to_value(TokenizeBody::reply(head(), &call, WithTexts(texts), answer).unwrap()).unwrap()
        };
        let expected = json!({ "count": 2, "max_model_len": 9, "tokens": [1, 7], "token_strs": null });
        assert_eq!(reply(false), expected);
        assert_eq!(reply(true)["token_strs"], json!(["a", "b"]));
        let (call, ()) = DetokenizeBody::parse(br#"{"model": "m", "tokens": [1, 2.0]}"#).unwrap();
        assert_eq!(call.tokens, [1, 2]);
        let reply = DetokenizeBody::reply(head(), &call, (), DetokenizeResponse { text: "ab".to_owned() }).unwrap();
        assert_eq!(serde_json::to_value(reply).unwrap(), json!({ "prompt": "ab" }));
    }
}
