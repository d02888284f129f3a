//! What must be true when everything has come to rest.

use std::time::Duration;

use muster_shared::control::WorkerState;
use muster_shared::id::{GatewayId, TicketId};

use super::controller::Controller;
use super::world::World;
use super::{Actor, MODELS};

/// Those who wait for the room that a probe gives back.
const WAITERS: usize = 3;

impl World {
    /// Sees whether the controller counts what is true, and does what it counts.
    pub(super) fn confirm(&mut self) {
        let mut claims = vec![self.nobody_is_kept_waiting(), self.everyone_is_known()];
        claims.extend(self.every_load_is_true());
        claims.into_iter().for_each(|claim| self.sim.claim(claim));
        if self.sim.violation.is_none() {
            for model in MODELS {
                let done = self.room_is_what_is_free(model);
                self.sim.claim(done);
            }
        }
        self.confirmed += 1;
        self.sim.note(Actor::World, "all is true", [self.confirmed, 0]);
    }

    fn nobody_is_kept_waiting(&self) -> Result<(), String> {
        let (waiting, flowing) = (self.sim.clients.kept_waiting(), self.sim.clients.flowing());
        let in_flight: usize = self.gateways.iter().map(super::gateway::Gateway::in_flight).sum();
        if waiting > 0 || flowing != in_flight {
            return Err(format!(
                "{waiting} clients wait, {flowing} get answers, and gateways have {in_flight} requests"
            ));
        }
        let asked = self.controller.as_ref().map_or(usize::MAX, |controller| controller.books.asks.len());
        if asked > 0 { Err(format!("{asked} wait at the controller")) } else { Ok(()) }
    }

    fn everyone_is_known(&self) -> Result<(), String> {
        let controller = self.controller.as_ref().ok_or("there is no controller")?;
        let fleet = controller.fleet(self.sim.now);
        for worker in &self.workers {
            let listed = fleet.workers.iter().find(|listed| listed.id == worker.id);
            let is_listed = listed.is_some_and(|listed| {
                (listed.incarnation, &listed.address) == (worker.incarnation, &worker.address)
                    && listed.state != WorkerState::Gone
            });
            if !worker.is_alive || !is_listed || !controller.books.is_registered(&worker.id, worker.incarnation) {
                return Err(format!("{} is not known as it is: {worker:?}; listed is {listed:?}", worker.id));
            }
        }
        Ok(())
    }

    fn every_load_is_true(&self) -> Vec<Result<(), String>> {
        let Some(controller) = &self.controller else { return Vec::new() };
        let offers = self.workers.iter().flat_map(|worker| worker.models.iter().map(move |card| (worker, card)));
        let compared = offers.map(|(worker, card)| {
            let (truth, counted) = (worker.load(Some(&card.name)), controller.load(&worker.id, &card.name));
            if truth == counted {
                return Ok(());
            }
            Err(format!("{} has {truth} requests of `{}`, and the controller counts {counted}", worker.id, card.name))
        });
        compared.collect()
    }

    /// Asks for all the room there is: as much must be given, and no more. Then others wait, and each is served as room
    /// is given back, in turn.
    fn room_is_what_is_free(&mut self, model: &str) -> Result<(), String> {
        let Some(mut controller) = self.controller.take() else { return Ok(()) };
        let room = self.free_room(&controller, model);
        let done = match room {
            Some(room) if room > 0 => self.fill(&mut controller, model, room),
            _ => Ok(()),
        };
        self.controller = Some(controller);
        done
    }

    /// Requests that workers take more, as they know it; `None`: any number.
    fn free_room(&self, controller: &Controller, model: &str) -> Option<usize> {
        let mut room = 0;
        for listed in controller.fleet(self.sim.now).workers {
            let worker = &self.workers[super::gateway::number_of(&listed.id)];
            let Some(card) = worker.models.iter().find(|card| card.name == model) else { continue };
            let free = card.capacity.map(|capacity| capacity.total().saturating_sub(worker.load(Some(model))));
            room += match listed.state {
                WorkerState::Ready => free?,
                WorkerState::Suspect if listed.tickets == 0 => free.unwrap_or(1).min(1),
                _ => 0,
            } as usize;
        }
        Some(room)
    }

    fn fill(&mut self, controller: &mut Controller, model: &str, room: usize) -> Result<(), String> {
        let sim = &mut self.sim;
        let gateway = GatewayId::from_random(sim.serial().into());
        for _ in 0..room {
            controller.probe(gateway, model, Duration::ZERO, sim);
        }
        let given: Vec<TicketId> =
            controller.heard.drain(..).filter_map(|(_, answer)| Some(answer.ok()?.ticket)).collect();
        if given.len() != room {
            return Err(format!("workers have room for {room} of `{model}`, and {} are given", given.len()));
        }
        controller.probe(gateway, model, Duration::ZERO, sim);
        if controller.heard.drain(..).any(|(_, answer)| answer.is_ok()) {
            return Err(format!("workers have room for {room} of `{model}`, and one more is given"));
        }
        let waiters: Vec<u64> =
            (0..WAITERS.min(room)).map(|_| controller.probe(gateway, model, Duration::from_secs(5), sim)).collect();
        let mut served = Vec::new();
        let mut held = given;
        while let Some(ticket) = held.pop() {
            controller.end_probe(gateway, ticket, sim);
            for (ask, answer) in controller.heard.drain(..) {
                served.push(ask);
                held.extend(answer.ok().map(|grant| grant.ticket));
            }
        }
        if served == waiters {
            Ok(())
        } else {
            Err(format!("{waiters:?} wait for `{model}`, and served are {served:?}"))
        }
    }
}
