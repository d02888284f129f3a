//! A controller that goes away and comes back, as its gateways see it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_shared::control::{Held, Outcome};
use muster_shared::generate::Event;
use muster_shared::id::TicketId;
use muster_shared::problem::Problem;
use muster_shared::transport::Transport;

use crate::peers::raw::{Act, Raw, events, send};
use crate::peers::{Controller, Gateway, in_time};

/// Two workers that begin to answer and never end, and a gateway that looks at the fleet often.
async fn fleet() -> (Gateway, Controller, [Raw; 2]) {
    let began = Event::Started { prompt_tokens: 1, vocabulary: Some("v".to_owned()) };
    let delta = Event::Delta { choice: 0, text: "one".to_owned(), tokens: vec![1], logprobs: vec![] };
    let acts = || [send(events(&[began.clone(), delta.clone()])), Act::Hang];
    let workers = [Raw::always(acts()).await, Raw::always(acts()).await];
    let named = workers.iter().map(|worker| Ok::<_, Problem>(worker.named(Transport::Http)));
    let controller = Controller::start(named.collect::<Vec<_>>()).await;
    let often = Duration::from_millis(50);
    let gateway = Gateway::start(&controller.address, |config| config.sync_interval = often).await;
    (gateway, controller, workers)
}

/// A stream that has begun.
async fn begin(gateway: &Gateway) -> reqwest::Response {
    let mut response = gateway.chat(true).await;
    assert_eq!(response.status(), 200);
    in_time(response.chunk()).await.expect("a chunk").expect("a chunk");
    response
}

fn tickets(held: &[Held]) -> BTreeSet<TicketId> {
    held.iter().map(|held| held.ticket).collect()
}

#[tokio::test]
async fn without_a_controller_requests_spread_over_the_known_workers_and_are_told_of_on_its_return() {
    let (gateway, mut controller, workers) = fleet().await;
    assert!(controller.greeted().await.is_empty());
    let mut streams = vec![begin(&gateway).await];
    assert_eq!(controller.asked(), 1);
    controller.go_away();
    for _ in 0..3 {
        streams.push(begin(&gateway).await);
    }
    assert_eq!(controller.asked(), 1, "nobody was asked");
    assert_eq!(workers.each_ref().map(|worker| worker.asked().len()), [2, 2], "of two the one with fewer requests");

    controller.come_back();
    let held = controller.greeted().await;
    assert_eq!(tickets(&held).len(), 4, "{held:?}");
    for worker in &workers {
        let id = worker.named(Transport::Http).id();
        assert_eq!(held.iter().filter(|held| held.worker == id && held.model == "m").count(), 2, "{held:?}");
    }
    drop(streams);
    let mut released = BTreeSet::new();
    for _ in 0..4 {
        let release = controller.released().await;
        assert_eq!(release.outcome, Outcome::Cancelled);
        released.insert(release.ticket);
    }
    assert_eq!(released, tickets(&held));
}

#[tokio::test]
async fn what_has_ended_during_an_outage_is_not_told_of() {
    let (gateway, mut controller, mut workers) = fleet().await;
    assert!(controller.greeted().await.is_empty());
    let ended = begin(&gateway).await;
    let stays = begin(&gateway).await;
    controller.go_away();
    let ended_too = begin(&gateway).await;
    drop(ended);
    drop(ended_too);
    workers[0].hung_up().await; // the first was granted there, the third has gone to either
    let models = reqwest::get(format!("{}/v1/models", gateway.address)).await.expect("an answer");
    assert!(models.text().await.expect("a body").contains("\"m\""), "the last known ones");
    // The gateway may not have heard yet that its clients have left: what it tells of then, it releases later.
    controller.come_back();
    let held = controller.greeted().await;
    let mut left = tickets(&held);
    while left.len() > 1 {
        assert!(left.remove(&controller.released().await.ticket));
    }
    drop(stays);
    assert_eq!(left, BTreeSet::from([controller.released().await.ticket]));
}

#[tokio::test]
async fn requests_whose_workers_a_new_controller_does_not_know_are_told_of_again() {
    let (gateway, mut controller, _workers) = fleet().await;
    assert!(controller.greeted().await.is_empty());
    let stream = begin(&gateway).await;
    controller.go_away();
    controller.forgets.store(true, Ordering::Relaxed);
    controller.come_back();
    let held = controller.greeted().await;
    assert_eq!(held.len(), 1);
    for _ in 0..3 {
        assert_eq!(in_time(controller.claims.recv()).await.expect("it runs"), held, "until it is known");
    }
    controller.forgets.store(false, Ordering::Relaxed);
    drop(stream);
    assert_eq!(controller.released().await.ticket, held[0].ticket);
}

#[tokio::test]
async fn a_controller_that_comes_and_goes_is_told_each_time_what_is_held_then() {
    let (gateway, mut controller, _workers) = fleet().await;
    assert!(controller.greeted().await.is_empty());
    for round in 0..3 {
        controller.go_away();
        let stream = begin(&gateway).await;
        controller.come_back();
        let held = controller.greeted().await;
        assert_eq!(held.len(), 1, "round {round}");
        drop(stream);
        assert_eq!(controller.released().await.ticket, held[0].ticket, "round {round}");
    }
}
