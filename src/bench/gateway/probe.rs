//! One request before the load: what every request would run into is found here.

use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::Value;
use tokio::time::timeout;

use super::connection::{Answer, Connection};
use super::target::Target;
use crate::cli::LoadKind;

/// Longest wait for the one answer: a model may have to be loaded first.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the answer that are read.
const KEPT: usize = 4 << 20;

/// Sends the request once.
///
/// # Errors
/// When the server does not answer it as OpenAI's API would.
pub(super) async fn check(target: &Target, request: &[u8], kind: LoadKind) -> anyhow::Result<()> {
    let mut answer = Answer::new(kind == LoadKind::Stream).keeping(KEPT);
    let mut events = 0;
    let exchange = async {
        let mut connection = Connection::open(target.address).await?;
        let count = |answer: &mut Answer| events += answer.events.as_mut().map_or(0, |events| events.take_fresh());
        connection.exchange(request, &mut answer, count).await.map_err(|broken| broken.reason)
    };
    match timeout(PATIENCE, exchange).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(error.context(format!("{} gave no answer", target.url))),
        Err(_) => bail!("{} gave no answer within {} s", target.url, PATIENCE.as_secs()),
    }
    if let Some(refusal) = answer.refusal() {
        bail!("{refusal}");
    }
    let is_answer = match &answer.events {
        None => is_answer(&answer.start, kind),
        Some(events) if events.error.is_some() => {
            bail!("the stream broke off: {}", events.error.as_deref().unwrap_or_default())
        }
        Some(stream) if events > 0 => {
            ensure!(stream.done, "{} ended the stream without [DONE]", target.url);
            true
        }
        Some(_) => false,
    };
    ensure!(
        is_answer,
        "{} does not answer as OpenAI's API does; it said `{}` (--url, --kind)",
        target.url,
        answer.shown()
    );
    Ok(())
}

fn is_answer(body: &[u8], kind: LoadKind) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return false };
    match kind {
        LoadKind::Embeddings => !value["data"][0]["embedding"].is_null(),
        LoadKind::Chat | LoadKind::Stream => value["choices"][0]["message"].is_object(),
    }
}
