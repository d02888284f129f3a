//! What is wrong when a controller does not answer as one: nobody there, somebody else, or no key.

use std::time::Duration;

use anyhow::anyhow;
use muster_shared::client::{ClientError, ControllerClient};
use muster_shared::problem::{BoxError, Kind, chain};
use muster_shared::tls::hint;
use serde_json::Value;

use crate::text::shown;

/// Time in which a controller answers, a large one on a busy machine, too.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for each look at who else it may be.
const LOOK: Duration = Duration::from_secs(2);
/// Longest words of a stranger that are shown, in characters.
const WORDS: usize = 120;

/// The answer to a question, or what is wrong, with a way out.
pub(crate) async fn asked<T>(
    client: &ControllerClient,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(explained(client, error).await),
        Err(_) => Err(anyhow!("{}; is a controller running there? (--controller-address)", silent(client))),
    }
}

/// Says that a controller says nothing.
pub(crate) fn silent(client: &ControllerClient) -> String {
    format!("{} does not answer", client.address())
}

async fn explained(client: &ControllerClient, error: ClientError) -> anyhow::Error {
    let address = client.address();
    let cause =
        |source: &Option<BoxError>| source.as_ref().map_or_else(String::new, |source| format!(": {}", root(&**source)));
    if let Some(way_out) = hint(&error) {
        return anyhow!("cannot speak with {address}: {way_out}: {}", root(&error));
    }
    match &error {
        ClientError::Unreachable { source, .. } => {
            anyhow!(
                "cannot reach {address}: is a controller running there? (--controller-address): {}",
                root(&**source)
            )
        }
        ClientError::Broken { source, .. } => anyhow!(
            "{address} takes connections, but does not speak HTTP there, or broke off; is that a controller's port? \
             (--controller-address){}",
            cause(source)
        ),
        ClientError::Refused { problem, .. } if problem.kind == Kind::BadKey => {
            anyhow!(
                "{address} refused: {}; show it with --fleet-token-file or --admin-key-file",
                shown(&problem.message)
            )
        }
        // The controller's own words about what was asked.
        ClientError::Refused { problem, .. } if problem.kind != Kind::NotFound || problem.param.is_some() => {
            anyhow!("{address} refused: {}", shown(&problem.message))
        }
        ClientError::Refused { .. } | ClientError::Unexpected { .. } => match who(client).await {
            Some(who) => anyhow!(
                "{address} is {who}; the controller's port is 21001 unless told otherwise (--controller-address)"
            ),
            None => anyhow!("{address} is no muster controller; {}", stranger(&error)),
        },
    }
}

/// The first cause, which has the network's own words.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn stranger(error: &ClientError) -> String {
    match error {
        ClientError::Unexpected { status, detail, .. } => {
            let detail: String = detail.chars().take(WORDS).collect();
            format!("it answered {status}: {} (--controller-address)", shown(detail.trim()))
        }
        other => chain(other),
    }
}

/// Which other service of muster's it is, if it is one. None of these paths wants a key.
async fn who(client: &ControllerClient) -> Option<&'static str> {
    let get = async |path: &str| {
        let response = client.open_get(path).timeout(LOOK).send().await.ok()?;
        Some((response.status().as_u16(), response.json::<Value>().await.ok()?))
    };
    let (_, version) = get("/version").await?;
    if version["name"] != "muster" {
        return None;
    }
    let (_, absent) = get("/topology").await?;
    if absent["error"].is_object() {
        return Some("a muster gateway"); // it answers in OpenAI's words
    }
    match get("/fleet").await? {
        (404, _) => Some("a muster worker"),
        _ => Some("a muster controller of another version, which has no /topology"),
    }
}
