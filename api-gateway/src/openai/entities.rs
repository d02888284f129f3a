//! The bodies of `/v1/classify` for models that find entities in texts.

use muster_shared::problem::Problem;
use muster_shared::text::{Aggregation, EntitiesRequest, EntitiesResponse, Entity};
use serde::Serialize;

use super::ReplyHead;
use super::endpoint::Endpoint;
use super::fields::{self, Fields, wrong};
use super::texts::{TextUsage, end, refuse, texts, truncate};
use crate::observe::Route;

/// What only models that tell classes can do.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("raw_scores", "it is for models that tell classes, and this one finds entities"),
    ("truncate_prompt_tokens", "leave it out, and set 'truncate' to cut texts to what the model takes"),
];

/// The endpoint, for models that find entities.
pub(crate) struct EntitiesBody;

impl Endpoint for EntitiesBody {
    const ROUTE: Route = Route::Classify;
    const PREFIX: &'static str = "classify";
    type Call = EntitiesRequest;
    type Form = ();
    type Reply = EntitiesReply;

    fn parse(body: &[u8]) -> Result<(EntitiesRequest, ()), Problem> {
        let mut fields = fields::object(body)?;
        let model = fields.required_string("model")?;
        refuse(&mut fields, UNSUPPORTED)?;
        let entities = EntitiesRequest {
            request_id: String::new(),
            model,
            inputs: texts("input", fields.required("input")?)?,
            aggregation: aggregation(&mut fields)?,
            truncate: truncate(&mut fields)?,
            timeout_ms: None,
        };
        end(fields)?;
        Ok((entities, ()))
    }

    fn reply(head: ReplyHead, _: &EntitiesRequest, (): (), answer: EntitiesResponse) -> Result<EntitiesReply, Problem> {
        let data = answer.entities.into_iter().enumerate().map(|(index, entities)| Found { index, entities });
        Ok(EntitiesReply {
            id: head.id,
            object: "list",
            created: head.created,
            model: head.model,
            data: data.collect(),
            usage: TextUsage::of(answer.prompt_tokens),
        })
    }
}

/// Under our name, or under that of transformers.
fn aggregation(fields: &mut Fields) -> Result<Aggregation, Problem> {
    let ours = strategy(fields, "aggregation")?;
    let theirs = strategy(fields, "aggregation_strategy")?;
    Ok(ours.or(theirs).unwrap_or_default())
}

fn strategy(fields: &mut Fields, name: &str) -> Result<Option<Aggregation>, Problem> {
    let Some(value) = fields.take(name) else { return Ok(None) };
    let named = value.as_str().and_then(|given| Aggregation::ALL.into_iter().find(|known| known.name() == given));
    named.map(Some).ok_or_else(|| wrong(name, &format!("one of {}", names()), &value))
}

fn names() -> String {
    Aggregation::ALL.map(Aggregation::name).join(", ")
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct EntitiesReply {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Found>,
    usage: TextUsage,
}

#[derive(Debug, Serialize)]
struct Found {
    index: usize,
    entities: Vec<Entity>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::openai::texts::{assert_refused, changed};

    fn usual() -> Value {
        json!({ "model": "m", "input": ["Ada was in London."] })
    }

    #[test]
    fn a_strategy_is_known_under_two_names() {
        for (more, expected) in [
            (json!({}), Aggregation::Simple),
            (json!({ "aggregation": "max" }), Aggregation::Max),
            (json!({ "aggregation_strategy": "none" }), Aggregation::None),
            (json!({ "aggregation": "first", "aggregation_strategy": "none" }), Aggregation::First),
        ] {
            assert_eq!(EntitiesBody::parse(&changed(usual(), more)).unwrap().0.aggregation, expected);
        }
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_field() {
        assert_refused(
            &usual(),
            EntitiesBody::parse,
            [
                ("model", json!(null), "model"),
                ("input", json!(null), "input"),
                ("input", json!({}), "input"),
                ("input", json!([]), "input"),
                ("input", json!([1, 2]), "input[0]"),
                ("input", json!([["a", "b"]]), "input[0]"),
                ("input", json!(["a", ""]), "input[1]"),
                ("input", json!(vec!["a"; 2049]), "input"),
                ("aggregation", json!("mean"), "aggregation"),
                ("aggregation", json!(1), "aggregation"),
                ("aggregation_strategy", json!("SIMPLE"), "aggregation_strategy"),
                ("raw_scores", json!(true), "raw_scores"),
                ("truncate", json!("LEFT"), "truncate"),
                ("truncate_prompt_tokens", json!(9), "truncate_prompt_tokens"),
                ("user", json!(1), "user"),
            ],
        );
        let problem = EntitiesBody::parse(&changed(usual(), json!({ "aggregation": "mean" }))).unwrap_err();
        assert!(problem.message.contains("none, simple, first, average, max"), "{problem}");
    }

    #[test]
    fn every_text_gets_its_entities() {
        let (call, ()) = EntitiesBody::parse(usual().to_string().as_bytes()).unwrap();
        let head = ReplyHead { id: "classify-1".to_owned(), created: 7, model: "m".to_owned() };
        let (label, text) = ("PER".to_owned(), "Ada".to_owned());
        let entity = Entity { label, score: 0.5, text, start: 0, end: 3 };
        let answer = EntitiesResponse { entities: vec![vec![entity], vec![]], prompt_tokens: 6 };
        let expected = json!({
            "id": "classify-1", "object": "list", "created": 7, "model": "m", "data": [
                { "index": 0, "entities": [{ "label": "PER", "score": 0.5, "text": "Ada", "start": 0, "end": 3 }] },
                { "index": 1, "entities": [] },
            ],
            "usage": { "prompt_tokens": 6, "total_tokens": 6 },
        });
        let reply = EntitiesBody::reply(head, &call, (), answer).unwrap();
        assert_eq!(serde_json::to_value(reply).unwrap(), expected);
    }
}
