//! What goes wrong in a storm, and what else comes between.

use std::time::Duration;

use muster_shared::control::Leave;

use super::network::End;
use super::wire::Wire;
use super::world::{World, models};
use super::{Actor, Event, MODELS, Timer};

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    WorkerDies,
    WorkerDrains,
    WorkerChangesModels,
    GatewayDies,
    ControllerDies,
    ControllerStandsStill,
    LinkBreaks,
    Cut,
    OperatorDrains,
    OperatorResumes,
    OperatorDeregisters,
    /// A client goes straight to a worker.
    Bypass,
    /// FastChat's interface is asked for an address.
    Lookup,
}

impl Fault {
    pub(super) const ALL: [Self; 13] = [
        Self::WorkerDies,
        Self::WorkerDrains,
        Self::WorkerChangesModels,
        Self::GatewayDies,
        Self::ControllerDies,
        Self::ControllerStandsStill,
        Self::LinkBreaks,
        Self::Cut,
        Self::OperatorDrains,
        Self::OperatorResumes,
        Self::OperatorDeregisters,
        Self::Bypass,
        Self::Lookup,
    ];

    /// Mean time between two, in seconds.
    fn mean(self) -> u64 {
        match self {
            Self::WorkerDies | Self::Cut => 15,
            Self::WorkerDrains | Self::LinkBreaks => 20,
            Self::GatewayDies | Self::OperatorDeregisters | Self::WorkerChangesModels => 40,
            Self::ControllerDies | Self::OperatorDrains => 60,
            Self::OperatorResumes => 10, // of those that are asked few drain
            Self::ControllerStandsStill => 90,
            Self::Bypass | Self::Lookup => 3,
        }
    }
}

/// Has a fault strike some time.
pub(super) fn strike_later(world: &mut World, fault: Fault) {
    let delay = world.sim.millis(0, fault.mean() * 2000);
    world.sim.after(delay, Event::Strike(fault, world.storm));
}

/// A fault strikes, and will again.
pub(super) fn strike(world: &mut World, fault: Fault) -> bool {
    strike_later(world, fault);
    let worker = world.sim.index(world.workers.len());
    let gateway = world.sim.index(world.gateways.len());
    let sim = &mut world.sim;
    match fault {
        Fault::WorkerDies => {
            world.workers[worker].crash(sim);
            let pause = sim.millis(100, 30_000);
            sim.after(pause, Event::Timer(Actor::Worker(worker), Timer::Start));
        }
        Fault::WorkerDrains => world.workers[worker].drain(sim),
        Fault::WorkerChangesModels => {
            let models = models(worker, sim);
            world.workers[worker].change_models(models, sim);
        }
        Fault::GatewayDies => {
            world.gateways[gateway].crash(sim);
            let pause = sim.millis(100, 20_000);
            sim.after(pause, Event::Timer(Actor::Gateway(gateway), Timer::Start));
        }
        Fault::ControllerDies => kill_controller(world),
        Fault::ControllerStandsStill => {
            let pause = sim.millis(500, 35_000);
            sim.note(Actor::Controller, "stands still, milliseconds", [pause.as_millis() as u64, 0]);
            world.stands_until = sim.now + pause;
        }
        Fault::LinkBreaks => {
            let links = sim.network.open_links(End::Gateway);
            if !links.is_empty() {
                let link = links[sim.index(links.len())];
                sim.break_link(link);
            }
        }
        Fault::Cut => {
            let pairs = [
                (Actor::Controller, Actor::Worker(worker)),
                (Actor::Controller, Actor::Gateway(gateway)),
                (Actor::Worker(worker), Actor::Gateway(gateway)),
            ];
            let (one, other) = pairs[sim.index(pairs.len())];
            let lasts = sim.millis(200, 25_000);
            sim.note(one, "is cut off from", [other.numbers().0, other.numbers().1]);
            sim.cut(one, other);
            sim.after(lasts, Event::Heal(one, other));
        }
        Fault::OperatorDrains | Fault::OperatorResumes | Fault::OperatorDeregisters => {
            let id = world.workers[worker].id.clone();
            let leave = Leave { id, incarnation: None };
            let wire = match fault {
                Fault::OperatorDrains => Wire::Drain(leave),
                Fault::OperatorResumes => Wire::Resume(leave),
                _ => Wire::Deregister(leave),
            };
            sim.post(Actor::World, Actor::Controller, wire);
        }
        Fault::Bypass => {
            let (address, model) = (world.workers[worker].address.clone(), MODELS[gateway % MODELS.len()]);
            world.bypass(worker, address, model);
        }
        Fault::Lookup => look_up(world, MODELS[gateway % MODELS.len()]),
    }
    true
}

/// The controller stops, or dies without a word.
fn kill_controller(world: &mut World) {
    let sim = &mut world.sim;
    if sim.now < world.stands_until {
        return;
    }
    let Some(mut controller) = world.controller.take() else { return };
    if sim.chance(0.5) {
        controller.close(sim);
    }
    sim.note(Actor::Controller, "dies", [controller.life, 0]);
    for link in sim.network.open_links(End::Controller) {
        sim.close_link(link, End::Controller);
    }
    let pause = sim.millis(10, 25_000);
    sim.after(pause, Event::Timer(Actor::Controller, Timer::Start));
}

fn look_up(world: &mut World, model: &'static str) {
    if world.sim.now < world.stands_until {
        return;
    }
    let Some(controller) = &mut world.controller else { return };
    let Some(address) = controller.lookup(model, &mut world.sim) else { return };
    let pause = Duration::from_millis(1);
    let Some(worker) = world.workers.iter().position(|worker| worker.address == address) else { return };
    world.sim.note(Actor::World, "goes to a looked-up worker", [worker as u64, pause.as_millis() as u64]);
    world.bypass(worker, address, model);
}
