//! Aliases, fallbacks and policies of single models: maps in a file, one flag for each entry on the command line.

use std::str::FromStr;

use muster_controller::names::Names;
use serde::{Deserialize, Serialize};

/// What a map of the file may hold, by name.
pub(crate) trait Entry: Sized {
    /// What stands behind the name.
    type Value: Serialize + for<'de> Deserialize<'de>;

    /// An entry of the map.
    fn new(name: String, value: Self::Value) -> Self;

    /// The same in two.
    fn parts(&self) -> (&str, &Self::Value);
}

/// Makes the type of a map's entries.
macro_rules! entry {
    ($(#[$doc:meta])* $entry:ident, $value:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct $entry {
            name: String,
            value: $value,
        }

        impl Entry for $entry {
            type Value = $value;

            fn new(name: String, value: $value) -> Self {
                Self { name, value }
            }

            fn parts(&self) -> (&str, &$value) {
                (&self.name, &self.value)
            }
        }
    };
}

entry!(
    /// A name, and the models it stands for with their weights.
    Alias,
    Weights
);
entry!(
    /// A model, and those that take its requests.
    Fallbacks,
    Vec<String>
);
entry!(
    /// A model, and the name of its policy.
    ModelPolicy,
    String
);

/// Models with their weights, in the order in which they were given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weights(Vec<(String, f64)>);

impl FromStr for Alias {
    type Err = String;

    /// Reads `NAME=MODEL:WEIGHT,MODEL:WEIGHT`.
    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write NAME=MODEL:WEIGHT,MODEL:WEIGHT, as in chat=old-model:90,new-model:10";
        let (name, models) = split(text, FORM)?;
        let weighted = models.split(',').map(|model| weighted(model.trim())).collect::<Result<_, _>>()?;
        Ok(Self::new(name, Weights(weighted)))
    }
}

/// Reads `MODEL:WEIGHT`, or `MODEL` alone. Names may hold colons: what follows the last one is the weight.
fn weighted(text: &str) -> Result<(String, f64), String> {
    let Some((model, weight)) = text.rsplit_once(':') else { return Ok((text.to_owned(), 1.0)) };
    let weight = weight.trim().parse().map_err(|_| {
        format!(
            "`{weight}` is no weight; write MODEL:WEIGHT with a number, or {text}:1 where `{text}` is the model's name"
        )
    })?;
    Ok((model.trim().to_owned(), weight))
}

impl FromStr for Fallbacks {
    type Err = String;

    /// Reads `MODEL=MODEL,MODEL`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, models) = split(text, "write MODEL=FALLBACK,FALLBACK, as in big=medium,small")?;
        Ok(Self::new(name, models.split(',').map(|model| model.trim().to_owned()).collect()))
    }
}

impl FromStr for ModelPolicy {
    type Err = String;

    /// Reads `MODEL=POLICY`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, policy) = split(text, "write MODEL=POLICY, as in big=lottery")?;
        Ok(Self::new(name, policy))
    }
}

/// What is before the first `=`, and what is behind it.
fn split(text: &str, form: &str) -> Result<(String, String), String> {
    let (name, rest) = text.split_once('=').ok_or_else(|| format!("`{text}` has no `=`; {form}"))?;
    Ok((name.trim().to_owned(), rest.trim().to_owned()))
}

/// Checks them all, and puts them in force.
///
/// # Errors
/// The first thing that is wrong with them, by the name of the list and the value.
pub(crate) fn checked(
    aliases: &Option<Vec<Alias>>,
    fallbacks: &Option<Vec<Fallbacks>>,
    policies: &Option<Vec<ModelPolicy>>,
) -> anyhow::Result<Names> {
    let aliases = given(aliases).map(|(name, Weights(models))| (name, models));
    Ok(Names::default().with_aliases(aliases)?.with_fallbacks(given(fallbacks))?.with_policies(given(policies))?)
}

fn given<T: Entry>(entries: &Option<Vec<T>>) -> impl Iterator<Item = (String, T::Value)>
where
    T::Value: Clone,
{
    let entries = entries.iter().flatten();
    entries.map(|entry| (entry.parts().0.to_owned(), entry.parts().1.clone()))
}

/// The form of entries in a file: a map by name.
pub(crate) mod map {
    use std::fmt;
    use std::marker::PhantomData;

    use serde::de::{Deserializer, MapAccess, Visitor};
    use serde::ser::{SerializeMap as _, Serializer};

    use super::Entry;

    pub(crate) fn serialize<T: Entry, S: Serializer>(entries: &Option<Vec<T>>, to: S) -> Result<S::Ok, S::Error> {
        let Some(entries) = entries else { return to.serialize_none() };
        let mut map = to.serialize_map(Some(entries.len()))?;
        for entry in entries {
            let (name, value) = entry.parts();
            map.serialize_entry(name, value)?;
        }
        map.end()
    }

    pub(crate) fn deserialize<'de, T: Entry, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<T>>, D::Error> {
        from.deserialize_option(Entries(PhantomData))
    }

    struct Entries<T>(PhantomData<T>);

    impl<'de, T: Entry> Visitor<'de> for Entries<T> {
        type Value = Option<Vec<T>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map by the names of models")
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_map(self)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some((name, value)) = map.next_entry()? {
                entries.push(T::new(name, value));
            }
            Ok(Some(entries))
        }
    }
}

impl Serialize for Weights {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(model, weight)| (model, weight)))
    }
}

impl<'de> Deserialize<'de> for Weights {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Models;

        impl<'de> serde::de::Visitor<'de> for Models {
            type Value = Weights;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a model, or a map from models to their weights")
            }

            fn visit_str<E>(self, model: &str) -> Result<Weights, E> {
                Ok(Weights(vec![(model.to_owned(), 1.0)]))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Weights, A::Error> {
                let mut models = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    models.push(entry);
                }
                Ok(Weights(models))
            }
        }

        deserializer.deserialize_any(Models)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ControllerSection;

    fn section(yaml: &str) -> Result<ControllerSection, String> {
        serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
    }

    fn refused(yaml: &str) -> String {
        match section(yaml) {
            Ok(section) => section.config().expect_err(yaml).to_string(),
            Err(error) => error,
        }
    }

    #[test]
    fn a_file_and_flags_say_the_same() {
        let file = section(
            "{aliases: {chat: {old: 90, new: 10.5}}, fallbacks: {big: [medium, small]}, policies: {big: Lottery}}",
        );
        let file = file.expect("a section");
        let flags = ControllerSection {
            aliases: Some(vec!["chat = old:90, new:10.5".parse().expect("an alias")]),
            fallbacks: Some(vec!["big=medium,small".parse().expect("fallbacks")]),
            policies: Some(vec!["big=Lottery".parse().expect("a policy")]),
            ..ControllerSection::default()
        };
        assert_eq!(
            (&file.aliases, &file.fallbacks, &file.policies),
            (&flags.aliases, &flags.fallbacks, &flags.policies)
        );
        let plain = section("{aliases: {chat: a}}").expect("one model needs no weight").aliases;
        assert_eq!(plain, Some(vec!["chat=a".parse().expect("an alias")]));
        let names = file.config().expect("it is right").names;
        assert_eq!(names, flags.config().expect("it is right").names);
        let printed = serde_saphyr::to_string(&file).expect("it can be shown");
        assert_eq!(section(&printed).expect("what is shown can be read").config().expect("it is right").names, names);
    }

    #[test]
    fn flags_replace_what_the_file_says() {
        let file = section("{aliases: {chat: {a: 1}}, fallbacks: {big: [a]}}").expect("a section");
        let flags =
            ControllerSection { aliases: Some(vec!["x=y".parse().expect("an alias")]), ..ControllerSection::default() };
        let both = flags.or(file);
        assert_eq!(both.aliases, Some(vec!["x=y:1".parse().expect("an alias")]));
        assert!(both.fallbacks.is_some());
    }

    #[test]
    fn a_models_name_may_hold_colons() {
        let alias = |text: &str| text.parse::<super::Alias>();
        assert_eq!(alias("chat=llama3:8b:2"), alias("chat=llama3:8b:2.0"));
        let error = alias("chat=llama3:8b").expect_err("no weight");
        assert!(error.contains("`8b` is no weight") && error.contains("llama3:8b:1"), "{error}");
    }

    #[test]
    fn flags_that_are_no_entries_are_refused() {
        assert!("chat".parse::<super::Alias>().expect_err("no models").contains("write NAME=MODEL:WEIGHT"));
        assert!("big".parse::<super::Fallbacks>().expect_err("no models").contains("write MODEL=FALLBACK"));
        assert!("big".parse::<super::ModelPolicy>().expect_err("no policy").contains("write MODEL=POLICY"));
    }

    #[test]
    fn wrong_names_are_refused_by_their_list_and_value() {
        for (yaml, words) in [
            ("aliases: {chat: {a: .nan}}", "aliases: the weight of `a` in `chat` is NaN"),
            ("aliases: {chat: {a: .inf}}", "aliases: the weight of `a` in `chat` is inf"),
            ("aliases: {chat: {a: -1}}", "aliases: the weight of `a` in `chat` is -1"),
            ("aliases: {chat: {a: 0}}", "aliases: the weights of `chat` sum to 0"),
            ("aliases: {chat: {}}", "aliases: nothing stands behind `chat`"),
            ("aliases: {'': {a: 1}}", "aliases: a name is empty"),
            ("aliases: {a: {b: 1}, b: {c: 1}}", "aliases: `a` leads to `b`, which is an alias"),
            ("aliases: {chat: [a]}", "expected a model, or a map from models to their weights"),
            ("aliases: {chat: {a: many}}", "line 1 column 21"),
            ("aliases: [chat]", "expected mapping start"),
            ("aliases: {chat: {a: 1}, chat: {b: 1}}", "chat"),
            ("aliases: {chat: {a: 1, a: 2}}", "a"),
            ("fallbacks: {big: []}", "fallbacks: nothing stands behind `big`"),
            ("fallbacks: {big: [big]}", "fallbacks: `big` is a fallback of itself"),
            ("fallbacks: {big: [a, a]}", "fallbacks: `big` names the model `a` twice"),
            ("policies: {big: coin}", "policies: `big`: unknown dispatch policy `coin`; expected one of: "),
        ] {
            let error = refused(yaml);
            assert!(error.contains(words), "{yaml}: {error}");
        }
    }
}
