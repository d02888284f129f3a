use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A model that is there: a folder is as good as a file.
const MODEL: &str = "/";

fn identity(model: &str, key: &str, size: u64) -> Identity {
    Identity { model: model.into(), key: key.into(), size }
}

fn write(folder: &Path) -> Result<(), String> {
    let files = [(Store::GRAPH, "graph"), (Store::WEIGHTS, "weights")];
    files.iter().try_for_each(|(name, text)| fs::write(folder.join(name), text)).map_err(|error| error.to_string())
}

fn read(graph: &Path) -> Result<String, String> {
    fs::read_to_string(graph.with_file_name(Store::WEIGHTS)).map_err(|error| error.to_string())
}

/// Loads an entry; tells whether it had to be made.
fn load(store: &Store, identity: &Identity) -> bool {
    let made = Cell::new(false);
    let save = |folder: &Path| {
        made.set(true);
        write(folder)
    };
    assert_eq!(store.load(identity, save, read).expect("an entry"), "weights");
    made.get()
}

fn names(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(store.root()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).filter(|name| name != "lock").collect();
    names.sort();
    names
}

#[test]
fn an_entry_is_made_once() {
    let cache = tempfile::tempdir().unwrap();
    let store = Store::new(cache.path());
    let model = identity(MODEL, "a", 1);
    assert!(load(&store, &model));
    assert!(!load(&store, &model));
    assert_eq!(names(&store), ["a"]);
}

#[test]
fn a_damaged_entry_is_made_anew() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("cut weights", |folder| fs::write(folder.join(Store::WEIGHTS), "wei").unwrap()),
        ("other weights of the same length", |folder| {
            // The time tells; it must not be that of the original by chance of a coarse clock.
            fs::write(folder.join(Store::WEIGHTS), "WEIGHTS").unwrap();
            let file = File::options().append(true).open(folder.join(Store::WEIGHTS)).unwrap();
            file.set_modified(SystemTime::now() + std::time::Duration::from_secs(1)).unwrap();
        }),
        ("garbage for a graph", |folder| fs::write(folder.join(Store::GRAPH), "gr\0ph").unwrap()),
        ("garbage for facts", |folder| fs::write(folder.join(ENTRY), "{}").unwrap()),
        ("no facts", |folder| fs::remove_file(folder.join(ENTRY)).unwrap()),
    ];
    let cache = tempfile::tempdir().unwrap();
    let store = Store::new(cache.path());
    let model = identity(MODEL, "a", 1);
    load(&store, &model);
    for (what, damage) in damages {
        damage(&store.root().join("a"));
        assert!(load(&store, &model), "{what}");
        assert!(!load(&store, &model), "{what}");
    }
}

#[test]
fn an_entry_that_cannot_be_loaded_is_made_anew_once() {
    let cache = tempfile::tempdir().unwrap();
    let store = Store::new(cache.path());
    let model = identity(MODEL, "a", 1);
    load(&store, &model);
    let made = Cell::new(0);
    let save = |folder: &Path| {
        made.set(made.get() + 1);
        write(folder)
    };
    let after_one = |graph: &Path| if made.get() == 0 { Err("unreadable".to_owned()) } else { read(graph) };
    assert_eq!(store.load(&model, save, after_one).expect("made anew"), "weights");
    assert_eq!(made.get(), 1);

    let error = store.load(&model, save, |_| Err::<(), _>("never".to_owned())).expect_err("it never loads");
    assert!(error.to_string().contains("never"), "{error}");
    assert_eq!(made.get(), 2);
}

#[test]
fn two_that_start_at_once_make_one_entry_and_both_get_it() {
    let cache = tempfile::tempdir().unwrap();
    let (store, model) = (Store::new(cache.path()), identity(MODEL, "a", 1));
    let (made, start) = (AtomicUsize::new(0), Barrier::new(2));
    let both = || {
        start.wait();
        let save = |folder: &Path| {
            made.fetch_add(1, Ordering::Relaxed);
            write(folder)
        };
        store.load(&model, save, read).expect("an entry")
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(both), scope.spawn(both)];
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), "weights"));
    });
    assert_eq!((made.load(Ordering::Relaxed), names(&store)), (1, vec!["a".to_owned()]));
}

#[test]
fn an_entry_that_could_not_be_finished_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let store = Store::new(cache.path());
    let save = |folder: &Path| write(folder).and(Err("no".to_owned()));
    store.load(&identity(MODEL, "a", 1), save, read).expect_err("not saved");
    assert!(names(&store).is_empty());
    // A process that was killed cannot tidy up; the next one does.
    fs::create_dir(store.root().join("building-dead")).unwrap();
    load(&store, &identity(MODEL, "a", 1));
    assert_eq!(names(&store), ["a"]);
}

#[test]
fn an_entry_of_the_same_model_that_is_long_unused_goes_or_of_one_that_is_gone_and_others_stay() {
    let cache = tempfile::tempdir().unwrap();
    let store = Store::new(cache.path());
    for (model, key, days) in [(MODEL, "old", 8), (MODEL, "used", 1), ("/usr", "other", 8), ("/gone", "gone", 1)] {
        load(&store, &identity(model, key, 1));
        let file = File::options().append(true).open(store.root().join(key).join(ENTRY)).unwrap();
        file.set_modified(SystemTime::now() - std::time::Duration::from_secs(days * 24 * 3600)).unwrap();
    }
    load(&store, &identity(MODEL, "new", 1));
    assert_eq!(names(&store), ["new", "other", "used"]);
}

#[test]
fn the_least_used_entries_make_room() {
    let cache = tempfile::tempdir().unwrap();
    // Each entry has 12 bytes; a new one of 2 bytes is expected to take 5.
    let store = Store { largest: 12 + 5, ..Store::new(cache.path()) };
    for (age, model) in [(3, "a"), (1, "b"), (2, "c")] {
        Store::new(cache.path()).load(&identity(MODEL, model, 1), write, read).expect("an entry");
        let file = File::options().append(true).open(store.root().join(model).join(ENTRY)).unwrap();
        file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age * 1000)).unwrap();
    }
    load(&store, &identity("/usr", "d", 2));
    assert_eq!(names(&store), ["b", "d"]);
    let error = store.load(&identity("/usr", "e", 100), write, read).expect_err("larger than all");
    assert!(matches!(error, CacheError::TooLarge { needed: 250, .. }), "{error}");
}

#[test]
fn a_cache_that_cannot_be_used_is_told_with_its_place() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let store = Store::new(file.path());
    let error = store.load(&identity(MODEL, "a", 1), write, read).expect_err("a file, no folder").to_string();
    assert!(error.contains(&file.path().display().to_string()) && error.contains("XDG_CACHE_HOME"), "{error}");
}

#[test]
fn a_full_disc_is_told_with_numbers() {
    let cache = tempfile::tempdir().unwrap();
    let store = Store { largest: u64::MAX, ..Store::new(cache.path()) };
    let error = store.load(&identity(MODEL, "a", 1 << 60), write, read).expect_err("no such disc");
    assert!(matches!(error, CacheError::Full { .. }), "{error}");
}
