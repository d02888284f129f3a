//! What one who asks wishes for, once the name has been resolved: a model, or another in its stead.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_shared::control::Grant;
use muster_shared::problem::{Kind, Problem};
use rand::Rng;

mod likeness;

use super::Desk;
use super::refusal::{self, Crowd};
use crate::names::{Names, Targets};
use crate::registry::{Asker, Denial, Lack, Registry, Request, millis};
pub(super) use likeness::Likeness;

/// A request, with the model that it is for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    /// For the model that was drawn, under which it waits.
    pub(super) asker: Asker,
    /// The alias that was asked for, where it was one.
    alias: Option<String>,
}

impl<R> Desk<R> {
    /// Resolves the name that is asked for.
    pub(super) fn wish(&mut self, mut asker: Asker) -> Wish {
        if asker.request.exact || self.names.stands_for(&asker.request.model).is_none() {
            return Wish { asker, alias: None };
        }
        let drawn = draw(&self.registry, &self.names, &mut self.rng, &asker.request).model.to_owned();
        let alias = std::mem::replace(&mut asker.request.model, drawn);
        asker.note.asked = Some(Arc::from(alias.as_str()));
        Wish { asker, alias: Some(alias) }
    }

    /// Gives a ticket of a worker that has room, of the model or another in its stead.
    pub(super) fn grant(&mut self, wish: &Wish, now: Instant) -> Result<Grant, Lack> {
        wish.grant(&mut self.registry, &self.names, &mut self.rng, now)
    }

    /// Why a request is refused, in words.
    pub(super) fn problem(&self, wish: &Wish, waited: Duration) -> Problem {
        if wish.waits_for_one(&self.names) {
            return self.problem_of_one(&wish.asker, waited);
        }
        let own = self.tally(wish, wish.targets(&self.names).iter());
        if own.is_live {
            return refusal::overloaded(&wish.described(&self.names), own.crowd, waited);
        }
        let all = wish.all(&self.names);
        let (what, all) = match &wish.alias {
            None => (wish.described(&self.names), own),
            Some(alias) => (described(alias, &self.names), self.tally(wish, all.into_iter())),
        };
        if all.is_live {
            return refusal::overloaded(&what, all.crowd, waited);
        }
        let message = match all.excluded {
            0 => format!("no live worker serves {what} at the moment"),
            excluded => format!("every live worker of {what} ({excluded}) has failed this request"),
        };
        Problem::new(Kind::NoWorker, message).with_retry_after_ms(millis(self.retry_absent))
    }

    fn tally<'a>(&self, wish: &Wish, models: impl Iterator<Item = &'a str>) -> Tally {
        models.fold(Tally::default(), |mut tally, model| {
            match self.registry.denial(&wish.request_for(model)) {
                Some(Denial::NoRoom { full, open, paused }) => {
                    tally.is_live = true;
                    tally.crowd.full += full;
                    tally.crowd.open += open;
                    tally.crowd.paused += paused;
                }
                Some(Denial::NoWorker { excluded }) => tally.excluded += excluded,
                Some(Denial::UnknownModel) | None => {}
            }
            tally
        })
    }
}

/// Why none of some models is given, added up.
#[derive(Debug, Default)]
struct Tally {
    /// Whether one of them has a live worker.
    is_live: bool,
    crowd: Crowd,
    excluded: u32,
}

impl Wish {
    /// Gives a ticket of a worker that has room: of the model, else of the first fallback that has any. Where the model
    /// that was drawn for an alias has no live worker (any more), another is drawn, or at last whichever has room.
    pub(super) fn grant(
        &self,
        registry: &mut Registry,
        names: &Names,
        rng: &mut dyn Rng,
        now: Instant,
    ) -> Result<Grant, Lack> {
        let lack = match self.grant_of(registry, self.targets(names), rng, now) {
            Ok(grant) => return Ok(grant),
            Err(lack) => lack,
        };
        let Some(alias) = self.alias.as_ref().filter(|_| lack == Lack::Worker) else { return Err(lack) };
        let request = self.request_for(alias);
        let drawn = draw(registry, names, rng, &request);
        let others = names.stands_for(alias).into_iter().flatten().map(|model| names.targets_of(model));
        let mut lack = Lack::Worker;
        for targets in std::iter::once(drawn).chain(others) {
            match self.grant_of(registry, targets, rng, now) {
                Ok(grant) => return Ok(grant),
                Err(Lack::Room) => lack = Lack::Room,
                Err(Lack::Worker) => {}
            }
        }
        Err(lack)
    }

    /// What those have in common with it that find the same room.
    pub(super) fn likeness(&self) -> Likeness {
        Likeness::new(&self.asker.request, self.alias.clone())
    }

    /// Whether only workers of the model under which it waits will ever do.
    pub(super) fn waits_for_one(&self, names: &Names) -> bool {
        self.alias.is_none() && self.targets(names).fallbacks.is_empty()
    }

    fn grant_of(
        &self,
        registry: &mut Registry,
        targets: Targets<'_>,
        rng: &mut dyn Rng,
        now: Instant,
    ) -> Result<Grant, Lack> {
        let mut lack = Lack::Worker;
        for model in targets.iter() {
            let granted = if *model == self.asker.request.model {
                registry.grant(&self.asker, rng, now)
            } else {
                let mut asker = Asker { request: self.request_for(model), ..self.asker.clone() };
                asker.note.asked.get_or_insert_with(|| Arc::from(self.asker.request.model.as_str()));
                registry.grant(&asker, rng, now)
            };
            match granted {
                Ok(grant) => return Ok(self.named(grant, model)),
                Err(Lack::Room) => lack = Lack::Room,
                Err(Lack::Worker) => {}
            }
        }
        Err(lack)
    }

    /// Tells the model where it is not the one that was asked for.
    fn named(&self, grant: Grant, model: &str) -> Grant {
        let asked = self.alias.as_ref().unwrap_or(&self.asker.request.model);
        Grant { model: (model != asked).then(|| model.to_owned()), ..grant }
    }

    fn targets<'a>(&'a self, names: &'a Names) -> Targets<'a> {
        let Request { model, exact, .. } = &self.asker.request;
        if *exact { Targets::exactly(model) } else { names.targets_of(model) }
    }

    fn request_for(&self, model: &str) -> Request {
        Request { model: model.to_owned(), ..self.asker.request.clone() }
    }

    /// All models that stand behind the alias, with their fallbacks.
    fn all<'a>(&self, names: &'a Names) -> BTreeSet<&'a str> {
        let models = self.alias.iter().filter_map(|alias| names.stands_for(alias)).flatten();
        models.flat_map(|model| names.targets_of(model).iter()).collect()
    }

    /// The models that the request could go to, for those who are refused.
    fn described(&self, names: &Names) -> String {
        let Targets { model, fallbacks } = self.targets(names);
        let drawn = self.alias.as_ref().map(|alias| format!(" (drawn for the alias `{alias}`)")).unwrap_or_default();
        let others = match fallbacks {
            [] => String::new(),
            fallbacks => format!(" or its fallbacks ({})", quoted(fallbacks.iter().map(String::as_str))),
        };
        format!("the model `{model}`{drawn}{others}")
    }
}

/// All models that stand behind an alias, for those who are refused.
fn described(alias: &str, names: &Names) -> String {
    let models: Vec<&str> = names.stands_for(alias).into_iter().flatten().collect();
    let fallbacks = models.iter().flat_map(|model| names.fallbacks_of(model)).map(String::as_str);
    let fallbacks = match quoted(fallbacks) {
        none if none.is_empty() => none,
        some => format!(", with their fallbacks {some}"),
    };
    format!("the models that the alias `{alias}` stands for ({}{fallbacks})", quoted(models.into_iter()))
}

/// One of the models behind a name.
fn draw<'a>(registry: &Registry, names: &'a Names, rng: &mut dyn Rng, request: &'a Request) -> Targets<'a> {
    names.resolve(&request.model, |model| registry.standing(request, model), rng)
}

fn quoted<'a>(models: impl Iterator<Item = &'a str>) -> String {
    models.map(|model| format!("`{model}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
