use std::collections::HashMap;

use muster_shared::control::{ModelKind, ModelStatus};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;

/// Names with aliases `NAME=MODEL:WEIGHT,…` and fallbacks `NAME=MODEL,…`.
fn names(aliases: &[(&str, &[(&str, f64)])], fallbacks: &[(&str, &[&str])]) -> Result<Names, BadName> {
    let aliases = aliases.iter().map(|(alias, targets)| {
        (alias.to_string(), targets.iter().map(|(model, weight)| (model.to_string(), *weight)).collect())
    });
    let fallbacks = fallbacks.iter().map(|(model, fallbacks)| (model.to_string(), strings(fallbacks)));
    Names::default().with_fallbacks(fallbacks)?.with_aliases(aliases)
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn refused(names: Result<Names, BadName>) -> String {
    names.expect_err("they are wrong").to_string()
}

/// How often each model is drawn for `chat`, while those are served.
fn shares(names: &Names, served: &[&str], rounds: usize) -> HashMap<String, usize> {
    let mut rng = StdRng::seed_from_u64(7);
    let standing = |model: &str| if served.contains(&model) { Standing::Served } else { Standing::Absent };
    let mut shares = HashMap::new();
    for _ in 0..rounds {
        *shares.entry(names.resolve("chat", standing, &mut rng).model.to_owned()).or_default() += 1;
    }
    shares
}

#[test]
fn a_name_that_is_no_alias_stands_for_itself() {
    let names = names(&[("chat", &[("a", 1.0)])], &[("big", &["medium", "small"])]).expect("they are right");
    let mut rng = StdRng::seed_from_u64(7);
    let mut resolve = |asked| {
        let targets = names.resolve(asked, |_| Standing::Absent, &mut rng);
        targets.iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(resolve("other"), ["other"]);
    assert_eq!(resolve("big"), ["big", "medium", "small"]);
    assert_eq!(resolve("medium"), ["medium"], "fallbacks lead one way, and only one step");
    assert_eq!(resolve("chat"), ["a"]);
}

#[test]
fn a_canary_gets_its_share() {
    let names = names(&[("chat", &[("new", 10.0), ("old", 90.0)])], &[]).expect("they are right");
    let shares = shares(&names, &["new", "old"], 10_000);
    assert!((900..1100).contains(&shares["new"]), "{shares:?}");
    assert_eq!(shares["new"] + shares["old"], 10_000);
}

#[test]
fn the_same_seed_draws_the_same_models() {
    let names = names(&[("chat", &[("a", 1.0), ("b", 1.0), ("c", 2.0)])], &[]).expect("they are right");
    let draw = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut drawn = String::new();
        for _ in 0..24 {
            drawn += names.resolve("chat", |_| Standing::Served, &mut rng).model;
        }
        drawn
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn a_canary_whose_workers_are_gone_gives_its_share_to_the_others() {
    let names = names(&[("chat", &[("new", 10.0), ("old", 90.0)])], &[]).expect("they are right");
    assert_eq!(shares(&names, &["old"], 1000)["old"], 1000);
    assert_eq!(shares(&names, &["new"], 1000)["new"], 1000);
}

#[test]
fn a_model_of_weight_0_gets_nothing_even_when_it_alone_is_served() {
    let names = names(&[("chat", &[("off", 0.0), ("on", 1.0)])], &[]).expect("they are right");
    assert_eq!(shares(&names, &["off"], 100)["on"], 100);
    assert_eq!(names.stands_for("chat").expect("an alias").collect::<Vec<_>>(), ["on"]);
}

#[test]
fn a_model_with_a_fallback_is_drawn_when_no_model_is_served_itself() {
    let names = names(&[("chat", &[("a", 1.0), ("b", 99.0)])], &[("a", &["c"])]).expect("they are right");
    assert_eq!(shares(&names, &["c"], 100)["a"], 100, "only its fallback is there");
    assert_eq!(shares(&names, &["b", "c"], 100)["b"], 100, "what is served itself goes first");
}

#[test]
fn a_model_that_is_spared_after_failures_is_drawn_after_all_that_are_served() {
    let names = names(&[("chat", &[("a", 99.0), ("b", 1.0), ("c", 99.0)])], &[]).expect("they are right");
    let mut rng = StdRng::seed_from_u64(7);
    let mut drawn = |b| {
        let standing = |model: &str| match model {
            "a" => Standing::Suspended,
            "b" => b,
            _ => Standing::Absent,
        };
        names.resolve("chat", standing, &mut rng).model.to_owned()
    };
    assert_eq!(drawn(Standing::Served), "b");
    assert_eq!(drawn(Standing::Absent), "a");
}

#[test]
fn an_alias_that_can_never_be_drawn_is_refused() {
    for (weight, words) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-1.0, "-1"), (f64::NEG_INFINITY, "-inf")] {
        let error = refused(names(&[("chat", &[("a", 1.0), ("b", weight)])], &[]));
        let expected =
            format!("aliases: the weight of `b` in `chat` is {words}; a weight is a finite number, 0 or more");
        assert_eq!(error, expected);
    }
    for (targets, sum) in [(&[("a", 0.0), ("b", 0.0)], "0"), (&[("a", f64::MAX), ("b", f64::MAX)], "inf")] {
        let error = refused(names(&[("chat", targets)], &[]));
        assert!(error.starts_with(&format!("aliases: the weights of `chat` sum to {sum}; ")), "{error}");
    }
}

#[test]
fn names_that_say_nothing_or_the_same_twice_are_refused() {
    let a: &[(&str, f64)] = &[("a", 1.0)];
    for (given, words) in [
        (names(&[("", a)], &[]), "aliases: a name is empty; name a model"),
        (names(&[("chat", &[(" ", 1.0)])], &[]), "aliases: a name is empty behind `chat`; name a model"),
        (
            names(&[("chat", &[])], &[]),
            "aliases: nothing stands behind `chat`; name one model at least, or leave `chat` out",
        ),
        (names(&[("chat", &[("a", 1.0), ("a", 2.0)])], &[]), "aliases: `chat` names the model `a` twice; name it once"),
        (names(&[("chat", a), ("chat", a)], &[]), "aliases: `chat` is given twice; say all of it in one place"),
        (names(&[], &[("", &["a"])]), "fallbacks: a name is empty; name a model"),
        (names(&[], &[("big", &[""])]), "fallbacks: a name is empty behind `big`; name a model"),
        (
            names(&[], &[("big", &[])]),
            "fallbacks: nothing stands behind `big`; name one model at least, or leave `big` out",
        ),
        (names(&[], &[("big", &["a", "a"])]), "fallbacks: `big` names the model `a` twice; name it once"),
        (
            names(&[], &[("big", &["a"]), ("big", &["b"])]),
            "fallbacks: `big` is given twice; say all of it in one place",
        ),
        (names(&[], &[("big", &["a", "big"])]), "fallbacks: `big` is a fallback of itself; name other models"),
    ] {
        assert_eq!(refused(given), words);
    }
}

#[test]
fn nothing_leads_to_an_alias() {
    let a: &[(&str, f64)] = &[("a", 1.0)];
    let itself = refused(names(&[("chat", &[("chat", 1.0)])], &[]));
    assert!(itself.starts_with("aliases: `chat` leads to `chat`, which is itself; "), "{itself}");
    let idle = refused(names(&[("chat", &[("a", 1.0), ("chat", 0.0)])], &[]));
    assert_eq!(idle, itself, "not with a weight of 0 either");
    let chain = refused(names(&[("one", &[("two", 1.0)]), ("two", a)], &[]));
    assert!(chain.starts_with("aliases: `one` leads to `two`, which is an alias; name models only"), "{chain}");
    let fallback = refused(names(&[("chat", a)], &[("big", &["chat"])]));
    assert!(fallback.starts_with("fallbacks: `big` leads to `chat`, which is an alias; "), "{fallback}");
    let of_alias = refused(names(&[("chat", a)], &[("chat", &["b"])]));
    assert!(of_alias.starts_with("fallbacks: `chat` is an alias, and no worker serves it"), "{of_alias}");
}

#[test]
fn policies_are_of_models_and_exist() {
    let policy = |model: &str, policy: &str| [(model.to_owned(), policy.to_owned())];
    let names = names(&[("chat", &[("a", 1.0)])], &[]).expect("they are right");
    let good = names.clone().with_policies(policy("a", "Lottery")).expect("it exists");
    assert_eq!(good.policies().map(|(model, policy)| format!("{model}: {policy}")).collect::<Vec<_>>(), ["a: lottery"]);
    let unknown = refused(names.clone().with_policies(policy("a", "coin")));
    assert!(
        unknown.starts_with("policies: `a`: unknown dispatch policy `coin`; expected one of: lottery"),
        "{unknown}"
    );
    let empty = refused(names.clone().with_policies(policy("", "lottery")));
    assert_eq!(empty, "policies: a name is empty; name a model");
    let of_alias = refused(names.clone().with_policies(policy("chat", "lottery")));
    assert!(of_alias.starts_with("policies: `chat` is an alias"), "{of_alias}");
    let twice = policy("a", "lottery").into_iter().chain(policy("a", "lottery"));
    assert_eq!(refused(names.with_policies(twice)), "policies: `a` is given twice; say all of it in one place");
}

#[test]
fn it_is_known_whom_new_room_relieves() {
    let alias: (&str, &[(&str, f64)]) = ("chat", &[("big", 1.0), ("new", 1.0)]);
    let names = names(&[alias], &[("big", &["medium", "small"]), ("huge", &["medium"])]).expect("they are right");
    assert_eq!(names.relieves("small"), ["big", "new"]);
    assert_eq!(names.relieves("medium"), ["big", "huge", "new"]);
    assert_eq!((names.relieves("big"), names.relieves("new")), (&["new".to_owned()][..], &["big".to_owned()][..]));
    assert!(names.relieves("huge").is_empty());
}

fn served(name: &str, kind: Option<ModelKind>, context_length: Option<u32>) -> ModelStatus {
    ModelStatus { kind, context_length, ..ModelStatus::bare(name, 2) }
}

#[test]
fn aliases_are_listed_like_models_while_one_of_theirs_is_served() {
    let names = names(&[("chat", &[("a", 1.0), ("b", 1.0)]), ("gone", &[("c", 1.0)])], &[]).expect("they are right");
    let names = names.with_policies([("b".to_owned(), "lottery".to_owned())]).expect("it exists");
    let (a, b) = (served("a", Some(ModelKind::Generate), Some(4096)), served("b", None, Some(2048)));
    let listed = names.list(vec![a.clone(), b.clone(), served("gone", None, None)]);
    let chat = ModelStatus {
        stands_for: strings(&["a", "b"]),
        workers: 4,
        ..served("chat", Some(ModelKind::Generate), Some(2048))
    };
    let b = ModelStatus { policy: Some("lottery".to_owned()), ..b };
    assert_eq!(listed, [a, b, chat], "an alias hides the model of its name, served or not");
}

#[test]
fn an_alias_of_models_for_different_things_does_not_say_what_it_is_for() {
    let names = names(&[("all", &[("a", 1.0), ("b", 1.0)])], &[]).expect("they are right");
    let listed =
        names.list(vec![served("a", Some(ModelKind::Generate), None), served("b", Some(ModelKind::Embed), None)]);
    assert_eq!(listed.iter().map(|model| model.kind).collect::<Vec<_>>()[1], None);
}

#[test]
fn a_model_without_workers_is_listed_while_a_fallback_is_served() {
    let names =
        names(&[("chat", &[("big", 1.0)])], &[("big", &["small"]), ("huge", &["big"])]).expect("they are right");
    let listed = names.list(vec![served("small", Some(ModelKind::Generate), Some(2048))]);
    let by_name: Vec<_> = listed.iter().map(|model| (model.name.as_str(), model.workers)).collect();
    assert_eq!(by_name, [("big", 0), ("chat", 0), ("small", 2)], "`huge` would need a fallback of a fallback");
    assert_eq!(listed[0].fallbacks, ["small"]);
    assert_eq!(listed[0].kind, Some(ModelKind::Generate));
}

proptest! {
    #[test]
    fn no_model_is_drawn_that_is_not_served_while_another_is(
        weights in prop::collection::vec(0.0_f64..1e9, 1..6), live: u8, seed: u64,
    ) {
        let targets: Vec<_> = weights.iter().enumerate().map(|(index, weight)| (index.to_string(), *weight)).collect();
        prop_assume!(weights.iter().any(|weight| *weight > 0.0));
        let names = Names::default().with_aliases([("chat".to_owned(), targets)]).expect("they are right");
        let is_live = |model: &str| live >> model.parse::<u8>().expect("a number") & 1 == 1;
        let standing = |model: &str| if is_live(model) { Standing::Served } else { Standing::Absent };
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..16 {
            let drawn = names.resolve("chat", standing, &mut rng).model;
            prop_assert!(weights[drawn.parse::<usize>().expect("a number")] > 0.0);
            let any_live = names.stands_for("chat").expect("an alias").any(is_live);
            prop_assert!(is_live(drawn) || !any_live, "{}", drawn);
        }
    }
}
