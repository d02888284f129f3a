//! What is written down of a peer and what it tells of itself, together. Pure.

use muster_shared::control::{Capabilities, ModelCard};
use muster_shared::transport::Transport;

use super::Peer;

/// Part of a declared amount by which the reported one may differ unremarked: systems keep some memory to themselves.
const TOLERANCE: f64 = 0.1;

/// What a peer offers, and in words what of it is not as it is written down. `told`: the models that it tells; `None`
/// while it has told none, or its protocol has no word for them.
pub(crate) fn models(peer: &Peer, told: Option<&[ModelCard]>) -> (Vec<ModelCard>, Vec<String>) {
    let Some(told) = told else { return (peer.models.clone(), Vec::new()) };
    if peer.models.is_empty() {
        return (told.to_vec(), Vec::new());
    }
    let (mut cards, mut warnings) = (Vec::new(), Vec::new());
    for declared in &peer.models {
        match told.iter().find(|card| card.name == declared.name) {
            Some(card) => cards.push(completed(declared, card)),
            None => {
                warnings.push(missing(&declared.name, told));
                // Many a server of OpenAI's API answers to names that it does not list.
                if peer.transport == Transport::OpenAi {
                    cards.push(declared.clone());
                }
            }
        }
    }
    (cards, warnings)
}

/// What is written down wins: an operator may know of limits that a peer does not.
fn completed(declared: &ModelCard, told: &ModelCard) -> ModelCard {
    ModelCard {
        name: declared.name.clone(),
        kind: declared.kind.or(told.kind),
        context_length: declared.context_length.or(told.context_length),
        capacity: declared.capacity.or(told.capacity),
        revision: told.revision.clone(),
    }
}

fn missing(model: &str, told: &[ModelCard]) -> String {
    let names: Vec<_> = told.iter().take(5).map(|card| format!("`{}`", card.name)).collect();
    let has = match told.len() {
        0 => "no model".to_owned(),
        count if count > names.len() => format!("{} and {} more", names.join(", "), count - names.len()),
        _ => names.join(", "),
    };
    format!("the model `{model}` is declared, and the peer reports {has}")
}

/// What a machine has in its own words where they are known, else as it is written down.
pub(crate) fn capabilities(declared: Option<&Capabilities>, told: Option<&Capabilities>) -> Option<Capabilities> {
    let (Some(told), Some(declared)) = (told, declared) else { return told.or(declared).cloned() };
    Some(Capabilities {
        cpus: told.cpus.or(declared.cpus),
        memory_gb: told.memory_gb.or(declared.memory_gb),
        gpu: told.gpu.clone().or_else(|| declared.gpu.clone()),
        gpu_memory_gb: told.gpu_memory_gb.or(declared.gpu_memory_gb),
    })
}

/// In words, what a machine tells that is not as it is written down.
pub(crate) fn differences(declared: &Capabilities, told: &Capabilities) -> Vec<String> {
    let amount = |name: &str, declared: Option<f64>, told: Option<f64>| {
        let (declared, told) = (declared?, told?);
        let differs = (declared - told).abs() > TOLERANCE * declared;
        differs.then(|| format!("{name} {declared} is declared, and the peer reports {}", rounded(told)))
    };
    let cpus = match (declared.cpus, told.cpus) {
        (Some(declared), Some(told)) if declared != told => {
            Some(format!("cpus {declared} is declared, and the peer reports {told}"))
        }
        _ => None,
    };
    let gpu = match (&declared.gpu, &told.gpu) {
        (Some(declared), Some(told)) if !declared.agrees(told) => {
            Some(format!("gpu {declared} is declared, and the peer reports {told}"))
        }
        _ => None,
    };
    let memory = amount("memory_gb", declared.memory_gb, told.memory_gb);
    let gpu_memory = amount("gpu_memory_gb", declared.gpu_memory_gb, told.gpu_memory_gb);
    [cpus, memory, gpu, gpu_memory].into_iter().flatten().collect()
}

fn rounded(amount: f64) -> f64 {
    (amount * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use muster_shared::control::{Capacity, Gpu};
    use muster_shared::id::WorkerId;

    use super::*;

    fn peer(transport: Transport, models: &[&str]) -> Peer {
        Peer {
            id: WorkerId::new("p"),
            address: "http://p:1".to_owned(),
            transport,
            models: models.iter().map(|&name| ModelCard::bare(name.to_owned())).collect(),
            site: None,
            speed: None,
            capabilities: None,
        }
    }

    fn names(cards: &[ModelCard]) -> Vec<&str> {
        cards.iter().map(|card| card.name.as_str()).collect()
    }

    #[test]
    fn what_is_declared_restricts_and_completes_what_is_told() {
        let capacity = Some(Capacity { running: 4, waiting: 8 });
        let told = [
            ModelCard { context_length: Some(7), ..ModelCard::bare("a") },
            ModelCard { capacity, ..ModelCard::bare("b") },
        ];
        let (cards, warnings) = models(&peer(Transport::Http, &[]), Some(&told));
        assert_eq!((names(&cards), warnings.len()), (vec!["a", "b"], 0));
        let mut declared = peer(Transport::Http, &["a"]);
        declared.models[0].capacity = capacity;
        let (cards, warnings) = models(&declared, Some(&told));
        assert_eq!(cards, [ModelCard { capacity, context_length: Some(7), ..ModelCard::bare("a") }]);
        assert_eq!(warnings.len(), 0);
        assert_eq!(models(&declared, None).0, declared.models, "until it tells, what is declared is offered");
    }

    #[test]
    fn a_declared_model_that_is_not_told_is_a_warning() {
        let told = [ModelCard::bare("a")];
        let (cards, warnings) = models(&peer(Transport::Http, &["a", "b"]), Some(&told));
        assert_eq!(names(&cards), ["a"]);
        assert_eq!(warnings, ["the model `b` is declared, and the peer reports `a`"]);
        let (cards, warnings) = models(&peer(Transport::OpenAi, &["a", "b"]), Some(&told));
        assert_eq!(
            (names(&cards), warnings.len()),
            (vec!["a", "b"], 1),
            "it may answer to names that it does not list"
        );
        let (_, warnings) = models(&peer(Transport::Http, &["b"]), Some(&[]));
        assert_eq!(warnings, ["the model `b` is declared, and the peer reports no model"]);
    }

    #[test]
    fn differences_are_told_in_words_and_small_ones_are_none() {
        let declared = Capabilities {
            cpus: Some(16),
            memory_gb: Some(64.0),
            gpu: Some(Gpu::Any(true)),
            gpu_memory_gb: Some(24.0),
        };
        let same =
            Capabilities { memory_gb: Some(62.1), gpu: Some(Gpu::Named("NVIDIA L4".to_owned())), ..declared.clone() };
        assert_eq!(differences(&declared, &same), [""; 0]);
        assert_eq!(differences(&declared, &Capabilities::default()), [""; 0], "silence is no difference");
        let other = Capabilities {
            cpus: Some(8),
            memory_gb: Some(31.96),
            gpu: Some(Gpu::Any(false)),
            gpu_memory_gb: Some(22.0),
        };
        let right = [
            "cpus 16 is declared, and the peer reports 8",
            "memory_gb 64 is declared, and the peer reports 32",
            "gpu true is declared, and the peer reports false",
        ];
        assert_eq!(differences(&declared, &other), right);
        let merged = capabilities(Some(&declared), Some(&Capabilities { cpus: Some(8), ..Capabilities::default() }));
        assert_eq!(merged, Some(Capabilities { cpus: Some(8), ..declared.clone() }));
        assert_eq!(capabilities(Some(&declared), None), Some(declared));
        assert_eq!(capabilities(None, None), None);
    }
}
