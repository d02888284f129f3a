//! The longest text that a model takes, and what fills up shorter ones.

use serde_json::Value;

use super::super::super::ModelError;
use super::super::{Configs, number};
use super::Facts;
use super::sentence::Sentence;

/// Kinds of networks whose places are numbered from behind the padding token's number on.
const ROBERTA_LIKE: [&str; 8] =
    ["roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "xmod"];
/// Others that have learned a vector for each place, so that there are no more of them.
const LEARNED_PLACES: [&str; 7] = ["bert", "distilbert", "albert", "electra", "mobilebert", "roformer", "layoutlm"];
/// Above this a tokenizer's `model_max_length` is a way to say that it has none.
const NO_LIMIT: u64 = 1 << 30;

/// The token that fills up shorter texts.
pub(super) fn padding(configs: &Configs) -> u32 {
    let stated = number(configs.config.as_ref(), "/pad_token_id").and_then(|id| u32::try_from(id).ok());
    let kind = configs.config.as_ref().and_then(|config| config.get("model_type")?.as_str());
    stated.unwrap_or(if kind.is_some_and(|kind| ROBERTA_LIKE.contains(&kind)) { 1 } else { 0 })
}

/// Whether places are numbered as RoBERTa does.
pub(super) fn is_roberta_like(facts: &Facts<'_>) -> bool {
    facts.model_type().is_some_and(|kind| ROBERTA_LIKE.contains(&kind))
}

/// Longest text, in tokens: what the folder states, within what the network has places for.
pub(super) fn max_tokens(facts: &Facts<'_>, sentence: &Sentence, padding: u32) -> Result<usize, ModelError> {
    let config = facts.configs.config.as_ref();
    let positions = ["/max_position_embeddings", "/n_positions", "/max_trained_positions"];
    let positions = positions.iter().find_map(|name| number(config, name)).filter(|&positions| positions > 0);
    let places = positions.map(|positions| match is_roberta_like(facts) {
        // Numbers up to the padding's are no text's: 514 positions are 512 places.
        true => positions.saturating_sub(padding as usize + 1),
        false => positions,
    });
    let stated = sentence.max_tokens.or(match places {
        Some(places) => Some(tokenizer_limit(facts).map_or(places, |limit| limit.min(places))),
        None => tokenizer_limit(facts),
    });
    let is_bound = is_roberta_like(facts) || facts.model_type().is_some_and(|kind| LEARNED_PLACES.contains(&kind));
    let longest = match (stated, places) {
        (Some(stated), Some(places)) if is_bound => Some(stated.min(places)),
        (stated, _) => stated,
    };
    longest.filter(|&tokens| tokens > 0).ok_or_else(|| {
        facts.unknown(
            "neither sentence_bert_config.json (max_seq_length) nor config.json (max_position_embeddings) nor \
             tokenizer_config.json (model_max_length) tells the longest text; as plain tensors it is served by \
             its file, --model NAME=FILE.onnx",
        )
    })
}

/// The tokenizer's own limit. Some files have it as a float of thirty digits, which means none.
fn tokenizer_limit(facts: &Facts<'_>) -> Option<usize> {
    let limit = facts.configs.tokenizer.as_ref()?.get("model_max_length").and_then(Value::as_u64)?;
    usize::try_from(limit).ok().filter(|_| limit > 0 && limit < NO_LIMIT)
}
