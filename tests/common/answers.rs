//! What a client gets, streamed or whole, in one form that can be compared.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// One answer, without what may differ from run to run: names, times, and what was found in a cache.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Reply {
    pub(crate) choices: Vec<Choice>,
    /// Tokens of the prompt, of the answers, and of both.
    pub(crate) usage: [u64; 3],
}

/// One choice of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) finish_reason: String,
    /// Texts of the tokens, where log-probabilities were asked for.
    pub(crate) tokens: Vec<String>,
    /// Log-probabilities in thousandths: those of a token that was read and those of one that was chosen differ by less.
    pub(crate) logprobs: Vec<i64>,
    /// Where the tokens begin in the text, which only completions tell.
    pub(crate) offsets: Vec<u64>,
}

/// Asks, and reads the answer to its end. Streams must have the shape that clients expect.
///
/// # Errors
/// What was wrong, where anything was.
pub(crate) async fn ask(client: &reqwest::Client, url: &str, body: &Value, name: &str) -> Result<Reply, String> {
    let mut body = body.clone();
    let streamed = body["stream"] == true;
    if streamed {
        body["stream_options"] = json!({ "include_usage": true });
    }
    let response = client.post(url).header("x-request-id", name).json(&body).send().await;
    let response = response.map_err(|error| format!("no answer: {error:?}"))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| format!("{status}, broken off: {error:?}"))?;
    if !status.is_success() {
        return Err(format!("{status}: {text}"));
    }
    let read = if streamed { read_stream(&text) } else { read_whole(&text) };
    read.map_err(|wrong| format!("{wrong} in:\n{text}"))
}

fn read_whole(text: &str) -> Result<Reply, String> {
    let answer: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut reply = Reply { choices: Vec::new(), usage: usage(&answer)? };
    for (index, choice) in answer["choices"].as_array().ok_or("no choices")?.iter().enumerate() {
        if choice["index"] != index {
            return Err(format!("choice {index} is {}", choice["index"]));
        }
        let mut whole = Choice::default();
        whole.add(choice, &choice["message"]["content"]);
        reply.choices.push(whole);
    }
    Ok(reply)
}

fn read_stream(text: &str) -> Result<Reply, String> {
    let events: Vec<&str> = text.split_terminator("\n\n").filter(|event| !event.starts_with(':')).collect();
    let Some((&"data: [DONE]", events)) = events.split_last() else { return Err("no [DONE] at the end".to_owned()) };
    let chunk = |event: &&str| {
        let data = event.strip_prefix("data: ").ok_or_else(|| format!("{event:?} is no event"))?;
        serde_json::from_str::<Value>(data).map_err(|error| format!("{error}: {data}"))
    };
    let chunks: Vec<Value> = events.iter().map(chunk).collect::<Result<_, _>>()?;
    let Some((last, pieces)) = chunks.split_last() else { return Err("no chunks".to_owned()) };
    if last["choices"] != json!([]) || pieces.iter().any(|piece| !piece["usage"].is_null()) {
        return Err("usage is not once, at the end".to_owned());
    }
    if let Some(other) = chunks.iter().find(|chunk| chunk["id"] != last["id"] || chunk["model"] != last["model"]) {
        return Err(format!("{other} is of another answer"));
    }
    let mut choices: BTreeMap<u64, Choice> = BTreeMap::new();
    let mut roles: BTreeMap<u64, usize> = BTreeMap::new();
    for piece in pieces {
        for choice in piece["choices"].as_array().ok_or("no choices")? {
            let index = choice["index"].as_u64().ok_or("no index")?;
            *roles.entry(index).or_default() += usize::from(choice["delta"]["role"].is_string());
            let known = choices.entry(index).or_default();
            if !known.finish_reason.is_empty() {
                return Err(format!("choice {index} goes on after its end"));
            }
            known.add(choice, &choice["delta"]["content"]);
        }
    }
    let told = if last["object"] == "text_completion" { 0 } else { 1 };
    if roles.values().any(|&count| count != told) {
        return Err(format!("roles are told {roles:?} times"));
    }
    if let Some(open) = choices.values().find(|choice| choice.finish_reason.is_empty()) {
        return Err(format!("{open:?} has no end"));
    }
    Ok(Reply { choices: choices.into_values().collect(), usage: usage(last)? })
}

fn usage(answer: &Value) -> Result<[u64; 3], String> {
    let count = |name: &str| answer["usage"][name].as_u64().ok_or(format!("no {name}"));
    Ok([count("prompt_tokens")?, count("completion_tokens")?, count("total_tokens")?])
}

impl Choice {
    /// Adds a piece of chat, whose text is given, or of a completion.
    fn add(&mut self, choice: &Value, content: &Value) {
        self.text.push_str(content.as_str().or(choice["text"].as_str()).unwrap_or_default());
        self.finish_reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        let logprobs = &choice["logprobs"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let thousandths = |value: &Value| value.as_f64().map_or(i64::MIN, |number| (number * 1000.0).round() as i64);
        for token in list(&logprobs["content"]) {
            self.tokens.push(token["token"].as_str().unwrap_or_default().to_owned());
            self.logprobs.push(thousandths(&token["logprob"]));
        }
        let tokens = list(&logprobs["tokens"]);
        self.tokens.extend(tokens.iter().map(|token| token.as_str().unwrap_or_default().to_owned()));
        self.logprobs.extend(list(&logprobs["token_logprobs"]).iter().map(thousandths));
        self.offsets.extend(list(&logprobs["text_offset"]).iter().filter_map(Value::as_u64));
    }

    /// Whether it says the same, and with log-probabilities that differ by rounding only.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let near = |(a, b): (&i64, &i64)| (a - b).abs() <= 1;
        let same_count = self.logprobs.len() == other.logprobs.len();
        let bare = |choice: &Self| Self { logprobs: Vec::new(), ..choice.clone() };
        same_count && self.logprobs.iter().zip(&other.logprobs).all(near) && bare(self) == bare(other)
    }
}

impl Reply {
    /// The same for all of it.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let choices = || self.choices.iter().zip(&other.choices);
        self.usage == other.usage && self.choices.len() == other.choices.len() && choices().all(|(a, b)| a.is_like(b))
    }
}
