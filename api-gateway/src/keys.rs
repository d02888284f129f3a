//! The keys that clients show: each has a name, a priority among the others, and limits.

pub(crate) mod reload;
pub(crate) mod ring;

use std::sync::{Arc, OnceLock};

use ::metrics::Counter;
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;

use crate::limits::budget::Budget;
use crate::limits::rate::Bucket;
use crate::limits::{KeyLimits, metrics};

/// Longest name of a key, in characters.
const LONGEST: usize = 64;

/// A key that lets a client in. Requests of different keys share a full fleet fairly.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// What it is called in logs, in refusals, and by the controller.
    pub name: String,
    /// The key itself.
    pub secret: Secret,
    /// Higher goes first among the keys whose requests wait; 0 is usual.
    pub priority: i8,
    /// Models that it may use; absent: all.
    pub models: Option<Models>,
    /// What it may use of them.
    pub limits: KeyLimits,
    /// Whether somebody has named it: the name of another is its place, which changes with the keys before it.
    is_named: bool,
    /// What it has used; every copy of the key has the same.
    pub(crate) door: Door,
}

/// What a key has used: shared by all threads of a gateway, and by the same key before and after its file has changed.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// Whoever holds the key: another, once its secret was replaced.
    owner: u128,
    pub(crate) budget: Arc<Budget>,
    /// Absent where requests may come as fast as they like.
    pub(crate) bucket: Option<Arc<Bucket>>,
    /// Tokens charged, for the metrics.
    charged: Arc<OnceLock<Counter>>,
}

/// Names of models that a key may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Models(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(String),
    Prefix(String),
}

/// Why a text is no name of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name for a key; take up to {LONGEST} letters, digits, `-`, `_`, `.`, `@`, `:` and `/`")]
pub struct NameError(String);

/// Why texts are no names of models.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelsError {
    /// There is none.
    #[error("models is empty, so the key could use none; name some, or leave it out for all")]
    None,
    /// One is not a name.
    #[error("models holds an empty name; name a model, or write `*` for all")]
    Empty,
    /// A star that is not last.
    #[error("models holds `{0}`; a `*` may stand at the end only, for names that begin with what is before it")]
    Star(String),
}

impl ApiKey {
    /// A key that nobody has named: it is called by its `place` among those that are configured, from 1 on: `key-1`.
    ///
    /// That is the same after a restart and at every gateway with the same keys in the same order, and tells nothing of
    /// the key. A hash of it would tell whether a guess is right.
    pub fn unnamed(secret: Secret, place: usize) -> Self {
        Self {
            name: format!("key-{place}"),
            secret,
            priority: 0,
            models: None,
            limits: KeyLimits::default(),
            is_named: false,
            door: Door::default(),
        }
    }

    /// A key with a name.
    ///
    /// # Errors
    /// Where the name would not be told apart from the text around it.
    pub fn named(name: &str, secret: Secret, priority: i8) -> Result<Self, NameError> {
        let plain = |character: char| character.is_alphanumeric() || "-_.@:/".contains(character);
        if name.is_empty() || name.chars().count() > LONGEST || !name.chars().all(plain) {
            return Err(NameError(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), priority, is_named: true, ..Self::unnamed(secret, 0) })
    }

    /// The same key with another priority.
    #[must_use]
    pub fn with_priority(self, priority: i8) -> Self {
        Self { priority, ..self }
    }

    /// The same key for some models only.
    #[must_use]
    pub fn with_models(self, models: Option<Models>) -> Self {
        Self { models, ..self }
    }

    /// The same key with limits.
    #[must_use]
    pub fn with_limits(self, limits: KeyLimits) -> Self {
        Self { limits, ..self }
    }

    /// Who holds it, by which what one has asked is told apart from what others have. It says nothing of the key, and is
    /// another after a restart, and when the key of that name has become another.
    pub(crate) fn owner(&self) -> u128 {
        self.door.owner
    }

    /// Whether it may use the model of that name. A name that stands for others is a name of its own.
    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.allows(model))
    }
}

/// Refuses a model that a key may not use, in the words for one that is not there: it is nobody's business which are.
///
/// # Errors
/// [`Kind::UnknownModel`].
pub(crate) fn check_model(key: Option<&ApiKey>, model: &str) -> Result<(), Problem> {
    if key.is_none_or(|key| key.may_use(model)) {
        return Ok(());
    }
    let message = format!(
        "the model `{model}` does not exist, or this key may not use it; GET /v1/models lists those that it may"
    );
    Err(Problem::new(Kind::UnknownModel, message).with_param("model"))
}

impl Default for Door {
    fn default() -> Self {
        Self { owner: rand::random(), budget: Arc::default(), bucket: None, charged: Arc::default() }
    }
}

impl Door {
    /// The same for a key of another name, or with another secret.
    fn passed_on(self, same_name: bool, same_secret: bool) -> Self {
        let charged = if same_name { self.charged } else { Arc::default() };
        let owner = if same_secret { self.owner } else { rand::random() };
        Self { owner, charged, ..self }
    }

    /// So many tokens were charged to the key of that name.
    pub(crate) fn tokens(&self, name: &str, tokens: u64) {
        self.charged.get_or_init(|| metrics::key_tokens(name)).increment(tokens);
    }
}

impl Models {
    /// Reads names, of which one that ends with `*` stands for all that begin so.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(names: &[String]) -> Result<Self, ModelsError> {
        if names.is_empty() {
            return Err(ModelsError::None);
        }
        names.iter().map(|name| Pattern::parse(name)).collect::<Result<_, _>>().map(Self)
    }

    fn allows(&self, model: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Exact(name) => name == model,
            Pattern::Prefix(begin) => model.starts_with(begin.as_str()),
        })
    }
}

impl Pattern {
    fn parse(name: &str) -> Result<Self, ModelsError> {
        let begin = name.strip_suffix('*');
        match begin.unwrap_or(name) {
            rest if rest.contains('*') => Err(ModelsError::Star(name.to_owned())),
            "" if begin.is_none() => Err(ModelsError::Empty),
            rest if begin.is_some() => Ok(Self::Prefix(rest.to_owned())),
            rest => Ok(Self::Exact(rest.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_name_is_called_by_its_place_whatever_it_is() {
        let name = |secret, place| ApiKey::unnamed(Secret::new(secret), place).name;
        assert_eq!((&*name("hunter2", 1), &*name("hunter3", 1), &*name("hunter2", 12)), ("key-1", "key-1", "key-12"));
    }

    #[test]
    fn names_are_short_and_plain() {
        let name = |name: &str| ApiKey::named(name, Secret::new("key"), -1).map(|key| key.name);
        for text in ["alice", "team-7/alice@example.org", "žofie", "a:b_c"] {
            assert_eq!(name(text).as_deref(), Ok(text));
        }
        for text in ["", "two words", "a\nb", "\"", &"x".repeat(LONGEST + 1)] {
            assert_eq!(name(text), Err(NameError(text.to_owned())));
        }
    }

    #[test]
    fn a_key_may_use_the_models_that_it_names_and_those_that_begin_so() {
        let parse = |names: &[&str]| Models::parse(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        let models = parse(&["chat", "org/*"]).expect("names");
        let key = ApiKey::unnamed(Secret::new("key"), 1).with_models(Some(models));
        for (model, allowed) in [("chat", true), ("chat2", false), ("org/a", true), ("org/", true), ("org", false)] {
            assert_eq!(check_model(Some(&key), model).is_ok(), allowed, "{model}");
        }
        assert!(parse(&["*"]).expect("all").allows("anything"));
        assert!(check_model(None, "anything").is_ok());
        assert_eq!(parse(&[]), Err(ModelsError::None));
        assert_eq!(parse(&["a", ""]), Err(ModelsError::Empty));
        for star in ["*a", "a*b*", "**"] {
            assert_eq!(parse(&[star]), Err(ModelsError::Star(star.to_owned())));
        }
    }
}
