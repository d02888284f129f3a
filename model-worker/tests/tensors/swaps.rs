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

#[tokio::test(flavor = "multi_thread")]
async fn fifty_swaps_under_load_lose_no_request_and_no_memory() {
    let folder = repository(&["large"]);
    let version = folder.path().join("large/1");
    write_weights(&version, 1.0);
    let tensors = Arc::new(Tensors::new(&config(folder.path(), ModelControl::Explicit)));
    tensors.load("large").expect("it loads");
    let start = resident();

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

    let mut before = 0;
    for swap in 1..=SWAPS {
        let weight = (swap + 1) as f32;
        write_weights(&version, weight);
        let loading = Arc::clone(&tensors);
        tokio::task::spawn_blocking(move || loading.load("large")).await.expect("no panic").expect("it loads");
        assert_eq!(ask(&tensors).await, weight * 2048.0, "the new version answers");
        until_settled(&tensors).await;
        if swap == 5 {
            before = resident(); // the allocator has seen all there is to see
        }
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no request fails");
    }
    let after = resident();
    let requests = answered.load(Ordering::Relaxed);
    println!("{requests} requests; {start} KiB at the start, {before} after five swaps, {after} after all");
    assert!(requests > SWAPS);
    assert!(after <= before + before / 20, "{before} KiB became {after} KiB");
}
