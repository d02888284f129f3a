//! How tokens are chosen, as chat and completions say it.

use muster_shared::generate::Sampling;
use muster_shared::problem::Problem;
use serde_json::Value;

use super::fields::{Fields, too_many, wrong};

/// Most entries of `logit_bias`.
const BIASES: usize = 1024;

/// Takes every sampling parameter out of a request.
pub(crate) fn sampling(fields: &mut Fields) -> Result<Sampling, Problem> {
    let mut sampling = Sampling::default();
    let mut set = |name, range, place: &mut f32| -> Result<(), Problem> {
        if let Some(number) = fields.number(name, range)? {
            *place = number;
        }
        Ok(())
    };
    set("temperature", 0.0..=2.0, &mut sampling.temperature)?;
    set("top_p", 0.0..=1.0, &mut sampling.top_p)?;
    set("min_p", 0.0..=1.0, &mut sampling.min_p)?;
    set("presence_penalty", -2.0..=2.0, &mut sampling.presence_penalty)?;
    set("frequency_penalty", -2.0..=2.0, &mut sampling.frequency_penalty)?;
    if let Some(penalty) = above_zero(fields, "repetition_penalty", 2.0)? {
        sampling.repetition_penalty = penalty;
    }
    if let Some(typical_p) = above_zero(fields, "typical_p", 1.0)? {
        sampling.typical_p = typical_p;
    }
    // -1 is how others write "all".
    sampling.top_k = fields.at_least("top_k", -1)?.and_then(|k| u32::try_from(k).ok()).unwrap_or(0);
    if sampling.top_p == 0.0 {
        // The smallest set that is not empty: the likeliest token.
        (sampling.top_p, sampling.top_k) = (1.0, 1);
    }
    sampling.logit_bias = logit_bias(fields)?;
    sampling.seed = seed(fields)?;
    Ok(sampling)
}

/// A number of which 0 itself would mean nothing.
fn above_zero(fields: &mut Fields, name: &str, most: f32) -> Result<Option<f32>, Problem> {
    let Some(value) = fields.take(name) else { return Ok(None) };
    match value.as_f64().map(|number| number as f32) {
        Some(number) if number > 0.0 && number <= most => Ok(Some(number)),
        _ => Err(wrong(name, &format!("a number above 0 and at most {most}"), &value)),
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Problem> {
    const NAME: &str = "logit_bias";
    let biases = match fields.take(NAME) {
        None => return Ok(Vec::new()),
        Some(Value::Object(biases)) => biases,
        Some(other) => return Err(wrong(NAME, "an object from token ids to numbers", &other)),
    };
    if biases.len() > BIASES {
        return Err(too_many(NAME, BIASES, "entries", biases.len()));
    }
    biases.into_iter().map(|(id, bias)| logit_bias_entry(NAME, id, &bias)).collect()
}

fn logit_bias_entry(name: &str, id: String, bias: &Value) -> Result<(u32, f32), Problem> {
    let Ok(token) = id.parse() else {
        return Err(wrong(name, "an object whose keys are token ids", &Value::String(id)));
    };
    match bias.as_f64().map(|number| number as f32) {
        Some(number) if (-100.0..=100.0).contains(&number) => Ok((token, number)),
        _ => {
            let expected = format!("an object whose values are numbers between -100 and 100 (see token {token})");
            Err(wrong(name, &expected, bias))
        }
    }
}

/// Any integer of 64 bits; a negative one keeps its bits.
fn seed(fields: &mut Fields) -> Result<Option<u64>, Problem> {
    let Some(value) = fields.take("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.map(Some).ok_or_else(|| wrong("seed", "an integer of at most 64 bits", &value))
}
