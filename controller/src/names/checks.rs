//! What aliases, fallbacks and policies may be, before any of them is in force.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use super::Names;
use crate::config::{PolicyName, UnknownPolicy};

/// Which of the lists of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameList {
    /// Names that stand for models.
    Aliases,
    /// Models that take the requests of others.
    Fallbacks,
    /// Policies of models.
    Policies,
}

impl fmt::Display for NameList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aliases => "aliases",
            Self::Fallbacks => "fallbacks",
            Self::Policies => "policies",
        })
    }
}

/// Why names cannot be in force.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadName {
    /// A name without a letter.
    #[error("{list}: a name is empty{}; name a model", behind(.of))]
    Empty {
        /// Where it is.
        list: NameList,
        /// What it belongs to; empty when it is the name itself.
        of: String,
    },
    /// A name that is given more than once.
    #[error("{list}: `{name}` is given twice; say all of it in one place")]
    Twice {
        /// Where.
        list: NameList,
        /// Which.
        name: String,
    },
    /// An alias or a model with nothing behind it.
    #[error("{list}: nothing stands behind `{name}`; name one model at least, or leave `{name}` out")]
    Nothing {
        /// Where.
        list: NameList,
        /// Which.
        name: String,
    },
    /// A model that is named more than once behind one name.
    #[error("{list}: `{name}` names the model `{model}` twice; name it once")]
    Repeated {
        /// Where.
        list: NameList,
        /// Behind which name.
        name: String,
        /// Which model.
        model: String,
    },
    /// A weight that is no weight.
    #[error("aliases: the weight of `{model}` in `{alias}` is {weight}; a weight is a finite number, 0 or more")]
    Weight {
        /// Of which alias.
        alias: String,
        /// Of which of its models.
        model: String,
        /// As it was given.
        weight: f64,
    },
    /// Weights by which nothing can be drawn.
    #[error(
        "aliases: the weights of `{alias}` sum to {sum}; their sum must be above 0 and finite, since it is what each \
         weight is a share of"
    )]
    Sum {
        /// Of which alias.
        alias: String,
        /// What they sum to.
        sum: f64,
    },
    /// A name that leads to an alias, or back to itself.
    #[error("{list}: `{name}` leads to `{to}`, which is {}; name models only, since nothing leads to an alias", what(.name, .to))]
    Chain {
        /// Where.
        list: NameList,
        /// What leads there.
        name: String,
        /// The alias.
        to: String,
    },
    /// A model that is its own fallback.
    #[error("fallbacks: `{model}` is a fallback of itself; name other models")]
    OwnFallback {
        /// Which.
        model: String,
    },
    /// Fallbacks or a policy of an alias.
    #[error(
        "{list}: `{name}` is an alias, and no worker serves it under that name; say it of the models it stands for"
    )]
    OfAlias {
        /// Where.
        list: NameList,
        /// Which.
        name: String,
    },
    /// A policy that is none.
    #[error("policies: `{model}`: {unknown}")]
    Policy {
        /// Of which model.
        model: String,
        /// What is wrong, with the legal names.
        unknown: UnknownPolicy,
    },
}

fn behind(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" behind `{name}`") }
}

fn what(name: &str, to: &str) -> &'static str {
    if name == to { "itself" } else { "an alias" }
}

impl Names {
    /// The same with these aliases: each a name, and the models that it stands for with their weights.
    ///
    /// A weight of 0 is allowed beside others; that model gets nothing, even when no other is served.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn with_aliases(
        mut self,
        given: impl IntoIterator<Item = (String, Vec<(String, f64)>)>,
    ) -> Result<Self, BadName> {
        const LIST: NameList = NameList::Aliases;
        for (alias, targets) in given {
            check_list(LIST, &alias, targets.iter().map(|(model, _)| model.as_str()))?;
            for (model, weight) in &targets {
                if !(weight.is_finite() && *weight >= 0.0) {
                    return Err(BadName::Weight { alias, model: model.clone(), weight: *weight });
                }
            }
            let sum: f64 = targets.iter().map(|(_, weight)| weight).sum();
            if !(sum > 0.0 && sum.is_finite()) {
                return Err(BadName::Sum { alias, sum });
            }
            let drawn: Vec<_> = targets.iter().filter(|(_, weight)| *weight > 0.0).cloned().collect();
            if self.aliases.insert(alias.clone(), drawn).is_some() {
                return Err(BadName::Twice { list: LIST, name: alias });
            }
            for (model, _) in targets {
                if model == alias {
                    return Err(BadName::Chain { list: LIST, name: alias, to: model });
                }
            }
        }
        self.check_links()
    }

    /// The same with these fallbacks: each a model, and those that take its requests while it has no room, best first.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn with_fallbacks(mut self, given: impl IntoIterator<Item = (String, Vec<String>)>) -> Result<Self, BadName> {
        const LIST: NameList = NameList::Fallbacks;
        for (model, fallbacks) in given {
            check_list(LIST, &model, fallbacks.iter().map(String::as_str))?;
            if fallbacks.contains(&model) {
                return Err(BadName::OwnFallback { model });
            }
            if self.fallbacks.insert(model.clone(), fallbacks).is_some() {
                return Err(BadName::Twice { list: LIST, name: model });
            }
        }
        self.check_links()
    }

    /// The same with these policies: each a model, and the policy's name.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn with_policies(mut self, given: impl IntoIterator<Item = (String, String)>) -> Result<Self, BadName> {
        const LIST: NameList = NameList::Policies;
        for (model, policy) in given {
            check_name(LIST, &model, "")?;
            let policy: PolicyName =
                policy.parse().map_err(|unknown| BadName::Policy { model: model.clone(), unknown })?;
            if self.policies.insert(model.clone(), policy).is_some() {
                return Err(BadName::Twice { list: LIST, name: model });
            }
        }
        self.check_links()
    }

    /// Whether nothing leads to an alias, and nothing is said of one that holds for models. Then it is known, too, whom
    /// each model relieves.
    fn check_links(mut self) -> Result<Self, BadName> {
        let aliases = self.aliases.iter().map(|(name, targets)| (name, targets.iter().map(|(model, _)| model)));
        let aliased = first_link(&self.aliases, aliases);
        let fallen = first_link(&self.aliases, self.fallbacks.iter().map(|(name, models)| (name, models.iter())));
        for (list, link) in [(NameList::Aliases, aliased), (NameList::Fallbacks, fallen)] {
            if let Some((name, to)) = link {
                return Err(BadName::Chain { list, name, to });
            }
        }
        let fallbacks = self.fallbacks.keys().map(|name| (NameList::Fallbacks, name));
        let policies = self.policies.keys().map(|name| (NameList::Policies, name));
        let of_alias = fallbacks.chain(policies).filter(|(_, name)| self.aliases.contains_key(*name));
        match of_alias.min_by_key(|&(list, name)| (list == NameList::Policies, name)) {
            Some((list, name)) => Err(BadName::OfAlias { list, name: name.clone() }),
            None => {
                self.relieves = self.relieved();
                Ok(self)
            }
        }
    }

    /// For each model, the others whose requests it may take.
    fn relieved(&self) -> HashMap<String, Vec<String>> {
        let mut relieves: HashMap<String, BTreeSet<String>> = HashMap::new();
        let mut note = |by: &str, relieved: &str| {
            if by != relieved {
                relieves.entry(by.to_owned()).or_default().insert(relieved.to_owned());
            }
        };
        for (model, fallbacks) in &self.fallbacks {
            fallbacks.iter().for_each(|fallback| note(fallback, model));
        }
        for targets in self.aliases.values() {
            // What waits for one that has lost its workers may go to any of the others, and to their fallbacks.
            for by in targets.iter().flat_map(|(model, _)| self.targets_of(model).iter()) {
                targets.iter().for_each(|(relieved, _)| note(by, relieved));
            }
        }
        relieves.into_iter().map(|(by, relieved)| (by, relieved.into_iter().collect())).collect()
    }
}

/// The first name, by its letters, that leads to an alias.
fn first_link<'a, T>(
    aliases: &HashMap<String, T>,
    lists: impl Iterator<Item = (&'a String, impl Iterator<Item = &'a String>)>,
) -> Option<(String, String)> {
    let ordered: BTreeMap<_, _> = lists.collect();
    let mut links = ordered.into_iter().flat_map(|(name, models)| models.map(move |model| (name, model)));
    links.find(|(_, model)| aliases.contains_key(*model)).map(|(name, model)| (name.clone(), model.clone()))
}

/// A name, and what it has behind it.
fn check_list<'a>(list: NameList, name: &str, models: impl Iterator<Item = &'a str>) -> Result<(), BadName> {
    check_name(list, name, "")?;
    let mut seen = HashSet::new();
    for model in models {
        check_name(list, model, name)?;
        if !seen.insert(model) {
            return Err(BadName::Repeated { list, name: name.to_owned(), model: model.to_owned() });
        }
    }
    if seen.is_empty() { Err(BadName::Nothing { list, name: name.to_owned() }) } else { Ok(()) }
}

fn check_name(list: NameList, name: &str, of: &str) -> Result<(), BadName> {
    if name.trim().is_empty() { Err(BadName::Empty { list, of: of.to_owned() }) } else { Ok(()) }
}
