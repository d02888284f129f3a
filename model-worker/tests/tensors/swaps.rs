//! Exchanging a model while requests run, again and again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use muster_worker::config::ModelControl;
use muster_worker::tensor::repository::Tensors;

use crate::bench::*;

const SWAPS: usize = 50;
const CLIENTS: usize = 2;

/// Writes 25 MB of weights, all the same: the model then gives `weight` × 2048 × its input.
fn write_weights(folder: &Path, weight: f32) {
    let bytes = weight.to_le_bytes().repeat(2048 * 3072);
    // Whole files only, put there at once, as whoever exchanges models must do it.
    let new = folder.join("weights.new");
    std::fs::write(&new, bytes).expect("a file");
    std::fs::rename(new, folder.join("weights.bin")).expect("it is there");
}

/// Memory of this process that is in use, in KiB: what lies in files does not count, since the system takes it back.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let field = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("it tells this");
    field.trim().trim_end_matches(" kB").parse().expect("a number")
}

async fn ask(tensors: &Tensors) -> f32 {
    let response = tensors.infer(request("large", vec![floats("x", &[1, 1], &[1.0])])).await;
    numbers(&response.expect("no request fails").outputs[0])[0]
}

/// Nobody uses the old version any more.
async fn until_settled(tensors: &Tensors) {
    tokio::time::timeout(PATIENCE, async {
        while tensors.index(false).len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("old versions go");
}

/// Memory as the binary has it: glibc's own threshold grows to the largest piece that was ever freed, and what is smaller
/// then stays with the process. The binary fixes it when it starts (`src/environment.rs`); a test must be started so.
const THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

#[test]
fn fifty_swaps_under_load_lose_no_request_and_no_memory() {
    if std::env::var_os(THRESHOLD.0).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        return runtime.block_on(swap_under_load());
    }
    let this = std::env::current_exe().expect("a test has a file");
    let name = "swaps::fifty_swaps_under_load_lose_no_request_and_no_memory";
    let mut child = std::process::Command::new(this);
    let child = child.args(["--exact", name, "--nocapture"]).env(THRESHOLD.0, THRESHOLD.1);
    assert!(child.status().expect("it starts").success());
}

async fn swap_under_load() {
    let folder = repository(&["large"]);
    let version = folder.path().join("large/1");
    write_weights(&version, 1.0);
    let tensors = Arc::new(Tensors::new(&config(folder.path(), ModelControl::Explicit)));
    tensors.load("large").expect("it loads");

    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (tensors, done, answered) = (Arc::clone(&tensors), Arc::clone(&done), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut last = 1.0;
                while !done.load(Ordering::Relaxed) {
                    let scale = ask(&tensors).await / 2048.0;
                    assert!(scale >= last, "an old version answered after a new one: {scale} after {last}");
                    last = scale;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();

    // As it is once all that a request needs has been taken.
    while answered.load(Ordering::Relaxed) < 200 {
        tokio::task::yield_now().await;
    }
    let start = resident();
    for swap in 1..=SWAPS {
        let weight = (swap + 1) as f32;
        write_weights(&version, weight);
        let loading = Arc::clone(&tensors);
        tokio::task::spawn_blocking(move || loading.load("large")).await.expect("no panic").expect("it loads");
        assert_eq!(ask(&tensors).await, weight * 2048.0, "the new version answers");
        until_settled(&tensors).await;
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no request fails");
    }
    let requests = answered.load(Ordering::Relaxed);
    assert!(requests > SWAPS);
    let limit = start + start / 20;
    let freed = async {
        // The last old version's thread may still be at it.
        while resident() > limit {
            tokio::task::yield_now().await;
        }
    };
    let freed = tokio::time::timeout(PATIENCE, freed).await;
    let after = resident();
    println!("{requests} requests; {start} KiB before fifty swaps, {after} KiB after");
    assert!(freed.is_ok(), "{start} KiB became {after} KiB");
}
