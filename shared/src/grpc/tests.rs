//! Every message survives the way over the wire.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Map, Value, json};

use super::problem::{of_status, to_status};
use super::proto;
use crate::control::{Capacity, ModelCard, ModelKind};
use crate::embed::{EmbedInput, EmbedRequest, EmbedResponse, InputType, SparseVector, Vector};
use crate::generate::{
    Chat, Event, FinishReason, GenerateRequest, Message, Prompt, Resume, ResumedChoice, Sampling, TokenLogprob,
    TopLogprob, Usage,
};
use crate::problem::{Kind, Problem};
use crate::text::{
    Aggregation, ClassifyInput, ClassifyRequest, ClassifyResponse, DetokenizeRequest, DetokenizeResponse,
    EntitiesRequest, EntitiesResponse, Entity, RerankRequest, RerankResponse, TokenizeRequest, TokenizeResponse,
};

const KINDS: [Kind; 18] = [
    Kind::Invalid,
    Kind::PromptTooLong,
    Kind::BadKey,
    Kind::Forbidden,
    Kind::UnknownModel,
    Kind::NotFound,
    Kind::MethodNotAllowed,
    Kind::Stale,
    Kind::TooLarge,
    Kind::TooSlow,
    Kind::RateLimited,
    Kind::Overloaded,
    Kind::NoWorker,
    Kind::Upstream,
    Kind::Timeout,
    Kind::Bug,
    Kind::Run,
    Kind::UnsupportedCoding,
];

/// Out to bytes and back to the generated type.
fn wire<P: prost::Message + Default>(message: impl Into<P>) -> P {
    P::decode(message.into().encode_to_vec().as_slice()).expect("our own bytes")
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,12}"
}

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    vec(any::<u32>(), 0..6)
}

/// Numbers that JSON can say. Minus zero is zero: protobuf leaves both out.
fn number() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("what JSON can say", |number| number.is_finite()).prop_map(|number| number + 0.0)
}

/// JSON of every kind. Decimal fractions are left out: how exactly they are read is serde_json's affair.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1000i32..1000).prop_map(|number| json!(f64::from(number) / 4.0)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![vec(inner.clone(), 0..4).prop_map(Value::from), vec((text(), inner), 0..4).prop_map(object)]
    })
}

fn object(fields: Vec<(String, Value)>) -> Value {
    Value::Object(fields.into_iter().collect())
}

fn fields() -> impl Strategy<Value = Map<String, Value>> {
    vec((text(), json_value()), 0..4).prop_map(|fields| fields.into_iter().collect())
}

prop_compose! {
    fn message()(role in text(), content in option::of(text()), more in fields()) -> Message {
        Message { role, content, more }
    }
}

fn prompt() -> impl Strategy<Value = Prompt> {
    prop_oneof![
        (vec(message(), 0..4), fields())
            .prop_map(|(messages, template_arguments)| Prompt::Chat(Chat { messages, template_arguments })),
        text().prop_map(Prompt::Text),
        tokens().prop_map(Prompt::Tokens),
    ]
}

prop_compose! {
    fn sampling()(
        [temperature, top_p, min_p, typical_p] in [number(), number(), number(), number()],
        [repetition_penalty, presence_penalty, frequency_penalty] in [number(), number(), number()],
        top_k: u32,
        logit_bias in vec((any::<u32>(), number()), 0..4),
        seed: Option<u64>,
    ) -> Sampling {
        Sampling {
            temperature, top_p, top_k, min_p, typical_p, repetition_penalty, presence_penalty, frequency_penalty,
            logit_bias, seed,
        }
    }
}

prop_compose! {
    fn resume()(
        vocabulary in option::of(text()),
        choices in vec((tokens(), any::<u64>(), any::<Option<u32>>()), 0..4),
    ) -> Resume {
        let choice = |(tokens, text_bytes, finished)| ResumedChoice { tokens, text_bytes, finished };
        Resume { vocabulary, choices: choices.into_iter().map(choice).collect() }
    }
}

prop_compose! {
    fn generate_request()(
        [request_id, model] in [text(), text()],
        (prompt, sampling, resume) in (prompt(), sampling(), option::of(resume())),
        choices: u32,
        max_tokens: Option<u32>,
        stop in vec(text(), 0..3),
        (stop_token_ids, allowed_token_ids) in (tokens(), option::of(tokens())),
        (ignore_eos, echo) in any::<(bool, bool)>(),
        min_tokens: u32,
        logprobs: Option<u32>,
        cache_salt in option::of(text()),
        priority: i32,
        timeout_ms: Option<u64>,
    ) -> GenerateRequest {
        GenerateRequest {
            request_id, model, prompt, sampling, choices, max_tokens, stop, stop_token_ids, ignore_eos, min_tokens,
            allowed_token_ids, logprobs, echo, cache_salt, priority, timeout_ms, resume,
        }
    }
}

prop_compose! {
    fn top_logprob()(id: u32, token in text(), bytes: Option<Vec<u8>>, logprob in -100f32..0.0) -> TopLogprob {
        TopLogprob { id, token, bytes, logprob }
    }
}

prop_compose! {
    fn token_logprob()(chosen in top_logprob(), top in vec(top_logprob(), 0..3)) -> TokenLogprob {
        TokenLogprob { chosen, top }
    }
}

prop_compose! {
    fn problem()(
        kind in prop::sample::select(KINDS.to_vec()),
        message in text(),
        param in option::of(text()),
        retry_after_ms: Option<u64>,
    ) -> Problem {
        Problem { kind, message, param, retry_after_ms }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let reason = prop_oneof![Just(FinishReason::Stop), Just(FinishReason::Length)];
    prop_oneof![
        (any::<u32>(), option::of(text()))
            .prop_map(|(prompt_tokens, vocabulary)| Event::Started { prompt_tokens, vocabulary }),
        (any::<u32>(), text(), tokens(), vec(token_logprob(), 0..3))
            .prop_map(|(choice, text, tokens, logprobs)| Event::Delta { choice, text, tokens, logprobs }),
        (any::<u32>(), reason, any::<u32>()).prop_map(|(choice, reason, tokens)| Event::Finished {
            choice,
            reason,
            tokens
        }),
        any::<(u32, u32, u32)>().prop_map(|(prompt_tokens, completion_tokens, cached_tokens)| Event::Done {
            usage: Usage { prompt_tokens, completion_tokens, cached_tokens }
        }),
        problem().prop_map(|problem| Event::Failed { problem }),
    ]
}

prop_compose! {
    fn embed_request()(
        [request_id, model] in [text(), text()],
        inputs in vec(prop_oneof![text().prop_map(EmbedInput::Text), tokens().prop_map(EmbedInput::Tokens)], 0..4),
        dimensions: Option<u32>,
        prompt_name in proptest::option::of(text()),
        input_type in proptest::option::of(prop_oneof![Just(InputType::Query), Just(InputType::Document)]),
        truncate: bool,
        timeout_ms: Option<u64>,
    ) -> EmbedRequest {
        EmbedRequest { request_id, model, inputs, dimensions, prompt_name, input_type, truncate, timeout_ms }
    }
}

prop_compose! {
    fn card()(
        name in text(),
        kind in proptest::option::of(proptest::sample::select(&ModelKind::ALL[..])),
        context_length: Option<u32>,
        capacity: Option<(u32, u32)>,
        revision in proptest::option::of(text()),
    ) -> ModelCard {
        let capacity = capacity.map(|(running, waiting)| Capacity { running, waiting });
        ModelCard { name, kind, context_length, capacity, revision }
    }
}

prop_compose! {
    fn rerank_request()(
        [request_id, model, query] in [text(), text(), text()],
        documents in vec(text(), 0..4),
        raw_scores: bool,
        truncate: bool,
        timeout_ms: Option<u64>,
    ) -> RerankRequest {
        RerankRequest { request_id, model, query, documents, raw_scores, truncate, timeout_ms }
    }
}

fn classify_input() -> impl Strategy<Value = ClassifyInput> {
    prop_oneof![
        text().prop_map(ClassifyInput::Text),
        (text(), text()).prop_map(|(first, second)| ClassifyInput::Pair(first, second)),
        tokens().prop_map(ClassifyInput::Tokens),
    ]
}

prop_compose! {
    fn classify_request()(
        [request_id, model] in [text(), text()],
        inputs in vec(classify_input(), 0..4),
        raw_scores: bool,
        truncate: bool,
        timeout_ms: Option<u64>,
    ) -> ClassifyRequest {
        ClassifyRequest { request_id, model, inputs, raw_scores, truncate, timeout_ms }
    }
}

prop_compose! {
    fn classify_response()(
        labels in vec(text(), 0..4),
        scores in vec(vec(number(), 0..4), 0..4),
        multi_label: bool,
        prompt_tokens: u32,
    ) -> ClassifyResponse {
        ClassifyResponse { labels, scores, multi_label, prompt_tokens }
    }
}

prop_compose! {
    fn entities_request()(
        [request_id, model] in [text(), text()],
        inputs in vec(text(), 0..4),
        aggregation in proptest::sample::select(&Aggregation::ALL[..]),
        truncate: bool,
        timeout_ms: Option<u64>,
    ) -> EntitiesRequest {
        EntitiesRequest { request_id, model, inputs, aggregation, truncate, timeout_ms }
    }
}

prop_compose! {
    fn entity()([label, text] in [text(), text()], score in number(), start: u32, end: u32) -> Entity {
        Entity { label, score, text, start, end }
    }
}

proptest! {
    #[test]
    fn a_rerank_request_survives_the_wire(request in rerank_request()) {
        prop_assert_eq!(RerankRequest::from(wire::<proto::RerankRequest>(request.clone())), request);
    }

    #[test]
    fn scores_survive_the_wire(scores in vec(number(), 0..6), prompt_tokens: u32) {
        let response = RerankResponse { scores, prompt_tokens };
        prop_assert_eq!(RerankResponse::from(wire::<proto::RerankResponse>(response.clone())), response);
    }

    #[test]
    fn a_classify_request_survives_the_wire(request in classify_request()) {
        let back = ClassifyRequest::try_from(wire::<proto::ClassifyRequest>(request.clone())).expect("our own");
        prop_assert_eq!(back, request);
    }

    #[test]
    fn classes_survive_the_wire(response in classify_response()) {
        prop_assert_eq!(ClassifyResponse::from(wire::<proto::ClassifyResponse>(response.clone())), response);
    }

    #[test]
    fn an_entities_request_survives_the_wire(request in entities_request()) {
        let back = EntitiesRequest::try_from(wire::<proto::EntitiesRequest>(request.clone())).expect("our own");
        prop_assert_eq!(back, request);
    }

    #[test]
    fn entities_survive_the_wire(entities in vec(vec(entity(), 0..3), 0..3), prompt_tokens: u32) {
        let response = EntitiesResponse { entities, prompt_tokens };
        prop_assert_eq!(EntitiesResponse::from(wire::<proto::EntitiesResponse>(response.clone())), response);
    }

    #[test]
    fn what_a_tokenizer_is_asked_survives_the_wire(
        model in text(), prompt in prompt(), add_special_tokens: bool, tokens in tokens(),
    ) {
        let request = TokenizeRequest { model: model.clone(), prompt, add_special_tokens };
        let back = TokenizeRequest::try_from(wire::<proto::TokenizeRequest>(request.clone())).expect("our own");
        prop_assert_eq!(back, request);
        let request = DetokenizeRequest { model, tokens };
        prop_assert_eq!(DetokenizeRequest::from(wire::<proto::DetokenizeRequest>(request.clone())), request);
    }

    #[test]
    fn what_a_tokenizer_answers_survives_the_wire(
        tokens in tokens(), pieces in vec(text(), 0..6), max_tokens: u32, text in text(),
    ) {
        let response = TokenizeResponse { tokens, pieces, max_tokens };
        prop_assert_eq!(TokenizeResponse::from(wire::<proto::TokenizeResponse>(response.clone())), response);
        let response = DetokenizeResponse { text };
        prop_assert_eq!(DetokenizeResponse::from(wire::<proto::DetokenizeResponse>(response.clone())), response);
    }
}

proptest! {
    #[test]
    fn a_generate_request_survives_the_wire(request in generate_request()) {
        let back = GenerateRequest::try_from(wire::<proto::GenerateRequest>(request.clone())).expect("our own");
        // The text shows the order of keys, which equality does not.
        prop_assert_eq!(format!("{back:?}"), format!("{request:?}"));
        prop_assert_eq!(back, request);
    }

    #[test]
    fn an_event_survives_the_wire(event in event()) {
        let back = wire::<proto::Event>(event.clone()).into_event().expect("our own");
        prop_assert_eq!(back, Some(event));
    }

    #[test]
    fn an_embed_request_survives_the_wire(request in embed_request()) {
        let back = EmbedRequest::try_from(wire::<proto::EmbedRequest>(request.clone())).expect("our own");
        prop_assert_eq!(back, request);
    }

    #[test]
    fn vectors_survive_the_wire_bit_for_bit(
        vectors: Vec<Vec<f32>>,
        sparse: Vec<Vec<(u32, u16)>>,
        prompt_tokens: u32,
    ) {
        let sparse: Vec<_> = sparse.into_iter().map(|pairs| {
            let (indices, values): (Vec<u32>, Vec<u16>) = pairs.into_iter().unzip();
            SparseVector { indices, values: values.into_iter().map(f32::from).collect() }
        }).collect();
        let response = EmbedResponse { vectors: vectors.iter().cloned().map(Vector).collect(), sparse: sparse.clone(), prompt_tokens };
        let back = EmbedResponse::from(wire::<proto::EmbedResponse>(response));
        let bits = |vector: &[f32]| vector.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        let given: Vec<_> = vectors.iter().map(|vector| bits(vector)).collect();
        prop_assert_eq!(back.vectors.iter().map(|vector| bits(&vector.0)).collect::<Vec<_>>(), given);
        prop_assert_eq!(back.sparse, sparse);
        prop_assert_eq!(back.prompt_tokens, prompt_tokens);
    }

    #[test]
    fn a_card_survives_the_wire(card in card()) {
        prop_assert_eq!(ModelCard::try_from(wire::<proto::ModelCard>(card.clone())).expect("our own"), card);
    }

    #[test]
    fn a_problem_survives_as_a_status(problem in problem()) {
        let http = to_status(problem.clone()).into_http::<()>();
        let status = tonic::Status::from_header_map(http.headers()).expect("a status");
        prop_assert_eq!(of_status(&status), Some(problem));
    }

    #[test]
    fn no_bytes_make_the_conversions_panic(bytes: Vec<u8>) {
        let _ = proto::GenerateRequest::decode(bytes.as_slice()).map(GenerateRequest::try_from);
        let _ = proto::Event::decode(bytes.as_slice()).map(proto::Event::into_event);
        let _ = proto::EmbedRequest::decode(bytes.as_slice()).map(EmbedRequest::try_from);
        let _ = proto::ClassifyRequest::decode(bytes.as_slice()).map(ClassifyRequest::try_from);
        let _ = proto::EntitiesRequest::decode(bytes.as_slice()).map(EntitiesRequest::try_from);
        let _ = proto::TokenizeRequest::decode(bytes.as_slice()).map(TokenizeRequest::try_from);
    }
}

#[test]
fn what_a_foreign_client_leaves_out_is_as_usual() {
    let prompt = Some(proto::generate_request::Prompt::Text("hi".to_owned()));
    for sampling in [None, Some(proto::Sampling::default())] {
        let request =
            proto::GenerateRequest { model: "m".to_owned(), prompt: prompt.clone(), sampling, ..<_>::default() };
        let usual = GenerateRequest::new("m", Prompt::Text("hi".to_owned()));
        assert_eq!(GenerateRequest::try_from(request).expect("a request"), usual);
    }
    let entities = EntitiesRequest::try_from(proto::EntitiesRequest::default()).expect("a request");
    assert_eq!(entities.aggregation, Aggregation::Simple);
}

#[test]
fn what_is_not_as_it_must_be_is_named() {
    let refused =
        |request: proto::GenerateRequest| GenerateRequest::try_from(request).expect_err("refused").to_string();
    assert_eq!(refused(<_>::default()), "`prompt` is missing");
    let prompt = |prompt| proto::GenerateRequest { prompt: Some(prompt), ..<_>::default() };
    let chat = proto::Chat { messages: vec![], template_arguments_json: "[1]".to_owned() };
    let error = refused(prompt(proto::generate_request::Prompt::Chat(chat)));
    assert!(error.starts_with("`template_arguments_json` is not the text of a JSON object"), "{error}");
    let text = prompt(proto::generate_request::Prompt::Text("hi".to_owned()));
    for bad in [f32::NAN, f32::INFINITY] {
        let sampling = proto::Sampling { temperature: Some(bad), ..<_>::default() };
        let error = refused(proto::GenerateRequest { sampling: Some(sampling), ..text.clone() });
        assert!(error.contains("`temperature`") && error.contains("finite"), "{error}");
    }
    let finished = proto::event::Event::Finished(proto::Finished { choice: 0, reason: 7, tokens: 0 });
    let error = proto::Event { event: Some(finished) }.into_event().expect_err("no such reason").to_string();
    assert_eq!(error, "`reason` is 7, which this version does not know");
    assert!(proto::Event { event: None }.into_event().is_err());
    let entities = proto::EntitiesRequest { aggregation: 9, ..<_>::default() };
    let error = EntitiesRequest::try_from(entities).expect_err("no such aggregation").to_string();
    assert_eq!(error, "`aggregation` is 9, which this version does not know");
    assert!(ClassifyInput::try_from(proto::ClassifyInput { input: None }).is_err());
    let error = TokenizeRequest::try_from(proto::TokenizeRequest::default()).expect_err("no prompt").to_string();
    assert_eq!(error, "`prompt` is missing");
    assert_eq!(proto::Event::alive().into_event(), Ok(None));
}

#[test]
fn a_status_that_is_not_ours_means_what_its_code_says() {
    use tonic::{Code, Status};
    for (code, kind) in [
        (Code::InvalidArgument, Some(Kind::Invalid)),
        (Code::Unauthenticated, Some(Kind::BadKey)),
        (Code::PermissionDenied, Some(Kind::BadKey)),
        (Code::NotFound, Some(Kind::UnknownModel)),
        (Code::ResourceExhausted, Some(Kind::Overloaded)),
        (Code::Unavailable, Some(Kind::NoWorker)),
        (Code::DeadlineExceeded, Some(Kind::Timeout)),
        (Code::Unimplemented, None),
        (Code::Internal, None),
        (Code::Unknown, None),
    ] {
        let problem = of_status(&Status::new(code, "why"));
        assert_eq!(problem, kind.map(|kind| Problem::new(kind, "why")), "{code:?}");
    }
}

#[test]
fn a_long_message_is_cut_to_what_headers_take() {
    let status = to_status(Problem::new(Kind::Invalid, "ä".repeat(100_000)));
    let http = status.into_http::<()>();
    let size: usize = http.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    assert!(size < 8 << 10, "{size} bytes");
    let status = tonic::Status::from_header_map(http.headers()).expect("a status");
    assert_eq!(of_status(&status).expect("a problem").message, "ä".repeat(2048));
}
