//! What stands behind the names that clients ask for: aliases, fallbacks, and the policy of each model. Pure.
//!
//! A name is resolved in two steps, and neither is repeated. An alias draws one of the models it stands for, by weight;
//! a model, drawn or asked for itself, may have others that take its requests while it has no room. An alias hides a
//! model of the same name, and nothing leads back to an alias, so there are no chains and no circles.

mod checks;
mod listing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use rand::{Rng, RngExt as _};

use crate::config::PolicyName;

pub use checks::{BadName, NameList};

/// Aliases, fallbacks and policies by the names they belong to. The default has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Names {
    /// Each with the models it stands for and their weights, all of them above zero.
    aliases: HashMap<String, Vec<(String, f64)>>,
    fallbacks: HashMap<String, Vec<String>>,
    /// See [`Names::relieves`].
    relieves: HashMap<String, Vec<String>>,
    policies: BTreeMap<String, PolicyName>,
}

/// How well a model is served at the moment, for one request. The better one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// No live worker serves it, or all that do have failed the request.
    Absent,
    /// All live workers that serve it are spared after failures.
    Suspended,
    /// A live worker serves it; it may be full.
    Served,
}

/// The models that a request may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Targets<'a> {
    /// The one that it is for.
    pub(crate) model: &'a str,
    /// Those that take it while that one has no room, best first.
    pub(crate) fallbacks: &'a [String],
}

impl<'a> Targets<'a> {
    /// That model and no other.
    pub(crate) fn exactly(model: &'a str) -> Self {
        Self { model, fallbacks: &[] }
    }

    /// All of them, best first.
    pub(crate) fn iter(self) -> impl Iterator<Item = &'a str> {
        std::iter::once(self.model).chain(self.fallbacks.iter().map(String::as_str))
    }
}

/// How well an alias' target can be served: by itself rather than by a fallback, by either rather than by none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Absent,
    Suspended,
    ByFallback,
    ByItself,
}

impl Names {
    /// The models that a request for `asked` may go to.
    ///
    /// Of an alias, one of the models that are served is drawn by weight; where none is, one of those whose fallbacks
    /// are. A share of the requests goes to each model whether it has room or not, so that the shares stay true when the
    /// fleet is full. `rng` is used for aliases of several such models only.
    pub(crate) fn resolve<'a>(
        &'a self,
        asked: &'a str,
        standing: impl Fn(&str) -> Standing,
        rng: &mut dyn Rng,
    ) -> Targets<'a> {
        let model = match self.aliases.get(asked) {
            None => asked,
            Some(targets) => self.draw(targets, standing, rng),
        };
        self.targets_of(model)
    }

    /// A model and its fallbacks.
    pub(crate) fn targets_of<'a>(&'a self, model: &'a str) -> Targets<'a> {
        Targets { model, fallbacks: self.fallbacks_of(model) }
    }

    /// The models that an alias stands for, if it is one, in the order in which they were given.
    pub(crate) fn stands_for(&self, name: &str) -> Option<impl Iterator<Item = &str>> {
        Some(self.aliases.get(name)?.iter().map(|(model, _)| model.as_str()))
    }

    /// The aliases that stand for a model of which `is_served` says so.
    pub(crate) fn aliases_of(&self, is_served: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
        let served = self.aliases.iter().filter(move |(_, models)| models.iter().any(|(model, _)| is_served(model)));
        served.map(|(alias, _)| alias.as_str())
    }

    /// The models that take a model's requests while it has no room, best first.
    pub(crate) fn fallbacks_of(&self, model: &str) -> &[String] {
        self.fallbacks.get(model).map_or(&[], Vec::as_slice)
    }

    /// The models whose requests may go to that model as well: it is their fallback, or an alias stands for both.
    pub(crate) fn relieves(&self, model: &str) -> &[String] {
        self.relieves.get(model).map_or(&[], Vec::as_slice)
    }

    /// The policy of each model that has one of its own.
    pub(crate) fn policies(&self) -> impl Iterator<Item = (&str, PolicyName)> {
        self.policies.iter().map(|(model, &policy)| (model.as_str(), policy))
    }

    fn draw<'a>(
        &'a self,
        targets: &'a [(String, f64)],
        standing: impl Fn(&str) -> Standing,
        rng: &mut dyn Rng,
    ) -> &'a str {
        let ranked: Vec<_> =
            targets.iter().map(|(model, weight)| (self.rank(model, &standing), model.as_str(), *weight)).collect();
        let best = ranked.iter().map(|&(rank, ..)| rank).max();
        let best: Vec<_> = ranked.into_iter().filter(|&(rank, ..)| Some(rank) == best).collect();
        let (.., last, _) = *best.last().expect("an alias stands for something");
        if best.len() == 1 {
            return last;
        }
        let mut drawn = rng.random_range(0.0..1.0) * best.iter().map(|(.., weight)| weight).sum::<f64>();
        for (_, model, weight) in best {
            if drawn < weight {
                return model;
            }
            drawn -= weight;
        }
        last // rounding has carried the draw past the end
    }

    fn rank(&self, model: &str, standing: impl Fn(&str) -> Standing) -> Rank {
        let own = standing(model);
        if own == Standing::Served {
            return Rank::ByItself;
        }
        let others = self.fallbacks_of(model).iter().map(|fallback| standing(fallback)).max();
        match others.map_or(own, |other| other.max(own)) {
            Standing::Served => Rank::ByFallback,
            Standing::Suspended => Rank::Suspended,
            Standing::Absent => Rank::Absent,
        }
    }
}
