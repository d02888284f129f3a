//! The models of the fleet as clients know them: with aliases, and with those that only their fallbacks serve.

use std::collections::BTreeMap;

use muster_shared::control::ModelStatus;

use super::Names;

impl Names {
    /// Adds what stands behind names to the models that workers serve. What comes out is ordered by name.
    ///
    /// An alias is listed while one of its models is, and so is a model without workers while one of its fallbacks is:
    /// both can be asked for.
    pub(crate) fn list(&self, served: Vec<ModelStatus>) -> Vec<ModelStatus> {
        let mut models: BTreeMap<String, ModelStatus> =
            served.into_iter().map(|model| (model.name.clone(), model)).collect();
        self.list_fallbacks(&mut models);
        self.list_aliases(&mut models);
        for (name, policy) in &self.policies {
            if let Some(model) = models.get_mut(name) {
                model.policy = Some(policy.to_string());
            }
        }
        models.into_values().collect()
    }

    fn list_fallbacks(&self, models: &mut BTreeMap<String, ModelStatus>) {
        let mut absent = Vec::new();
        for (name, fallbacks) in &self.fallbacks {
            if let Some(model) = models.get_mut(name) {
                model.fallbacks.clone_from(fallbacks);
            } else if let Some(mut model) = together(name, fallbacks.iter(), models) {
                model.workers = 0;
                model.fallbacks.clone_from(fallbacks);
                absent.push(model);
            }
        }
        // Afterwards: a model that only its fallbacks serve is no fallback itself.
        models.extend(absent.into_iter().map(|model| (model.name.clone(), model)));
    }

    fn list_aliases(&self, models: &mut BTreeMap<String, ModelStatus>) {
        for (alias, targets) in &self.aliases {
            let targets = || targets.iter().map(|(model, _)| model);
            match together(alias, targets(), models) {
                Some(mut status) => {
                    status.stands_for = targets().cloned().collect();
                    models.insert(alias.clone(), status);
                }
                None => drop(models.remove(alias)), // it hides the model of its name all the same
            }
        }
    }
}

/// What can be said of some models under one name; `None` when none of them is listed. A request must fit whichever of
/// them it gets, and what they can be asked for is told where it is the same for all.
fn together<'a>(
    name: &str,
    targets: impl Iterator<Item = &'a String>,
    models: &BTreeMap<String, ModelStatus>,
) -> Option<ModelStatus> {
    let listed: Vec<&ModelStatus> = targets.filter_map(|target| models.get(target)).collect();
    if listed.is_empty() {
        return None;
    }
    let kinds = || listed.iter().filter_map(|model| model.kind);
    let kind = kinds().next().filter(|kind| kinds().all(|other| other == *kind));
    let workers = listed.iter().fold(0, |sum: u32, model| sum.saturating_add(model.workers));
    let context_length = listed.iter().filter_map(|model| model.context_length).min();
    Some(ModelStatus { kind, context_length, ..ModelStatus::bare(name, workers) })
}
