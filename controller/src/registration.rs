//! What a registration must be like before the registry sees it.

use std::collections::HashSet;

use muster_shared::control::{Capabilities, Gpu, Heartbeat, Identity, ModelCard, Registration, Report};
use muster_shared::fastchat::WorkerStatus;
use muster_shared::id::WorkerId;
use muster_shared::problem::{Kind, Problem};
use muster_shared::transport::Transport;
use reqwest::Url;

use crate::outbound::Outbound;
use crate::peers::{MOST_CPUS, MOST_GPUS, MOST_MEMORY_GB};
use crate::registry::{Known, check_measures};

/// Longest name of a worker or a model, in bytes.
const LONGEST_NAME: usize = 512;
/// Longest version of a worker, in bytes: it is told to all who look at the fleet.
const LONGEST_VERSION: usize = 64;
/// Longest address, in bytes.
const LONGEST_ADDRESS: usize = 2048;
/// Greatest speed: the sum of many must be a number, too.
pub(crate) const FASTEST: f64 = 1e12;
/// Most models that one worker offers: each costs the controller at every change of the worker.
pub(crate) const MOST_MODELS: usize = 4096;

/// Checks a registration by itself, and then that its worker can be reached. Says whether the worker itself has told, at
/// its address, that it is the one who registers.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`] with the field at fault.
pub(crate) async fn check(outbound: &Outbound, registration: &Registration) -> Result<bool, Problem> {
    check_words(registration)?;
    if registration.transport != Transport::Http {
        return reach(outbound, registration).await.map(|()| false);
    }
    let identity = outbound.identify(&registration.address).await;
    let identity = identity.map_err(|reason| Problem::invalid("address", reason))?;
    let Some(Identity { id, incarnation }) = identity else { return Ok(false) };
    if id != registration.id {
        let message =
            format!("the worker at {} says that it is `{id}`, not `{}`", registration.address, registration.id);
        return Err(Problem::invalid("address", message));
    }
    if incarnation != registration.incarnation {
        let message = format!(
            "the worker at {} says that it is incarnation {incarnation}, not {}",
            registration.address, registration.incarnation
        );
        // What is older was true once.
        let kind = if registration.incarnation < incarnation { Kind::Stale } else { Kind::Invalid };
        return Err(Problem::new(kind, message).with_param("incarnation"));
    }
    Ok(true)
}

/// Checks that no other process that still lives goes by the same name: `elsewhere` is where one was known.
///
/// # Errors
/// [`muster_shared::problem::Kind::Stale`] when there is one.
pub(crate) async fn check_alone(outbound: &Outbound, elsewhere: &Known) -> Result<(), Problem> {
    let Known { id, address, incarnation } = elsewhere;
    match outbound.identify(address).await {
        Ok(Some(identity)) if identity.id == *id && identity.incarnation == *incarnation => {
            let message = format!(
                "another worker at {address} goes by the id `{id}`, and lives: give each an id of its own, or stop that \
                 one first"
            );
            Err(Problem::new(Kind::Stale, message).with_param("id"))
        }
        // It has gone, or is a server that does not say who it is, which an operator may have moved.
        _ => Ok(()),
    }
}

/// What one hears who registers at the same time as another of its name.
pub(crate) fn another_came(id: &WorkerId) -> Problem {
    let message = format!("another worker has registered as `{id}` at the same time; give each an id of its own");
    Problem::new(Kind::Stale, message).with_param("id")
}

/// Checks a heartbeat by itself.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`] with the field at fault.
pub(crate) fn check_beat(beat: &Heartbeat) -> Result<(), Problem> {
    if let Some(speed) = beat.speed {
        check_speed(speed, "speed")?;
    }
    check_measures(beat)?;
    let told = beat.load.as_ref().map_or(0, Vec::len);
    if told > MOST_MODELS {
        return Err(Problem::invalid(
            "load",
            format!("the load of {told} models is told; a worker offers {MOST_MODELS} at most"),
        ));
    }
    Ok(())
}

/// Checks what a worker that is asked tells of itself.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`] with the field at fault.
pub(crate) fn check_report(report: &Report) -> Result<(), Problem> {
    check_words(&report.registration)?;
    check_beat(&report.heartbeat)
}

/// Refuses what no machine has.
fn check_capabilities(capabilities: &Capabilities) -> Result<(), Problem> {
    let Capabilities { cpus, memory_gb, gpu, gpu_memory_gb } = capabilities;
    if let Some(cpus) = cpus.filter(|cpus| !(1..=MOST_CPUS).contains(cpus)) {
        let message = format!("cpus is {cpus}; it must be a number from 1 to {MOST_CPUS}");
        return Err(Problem::invalid("capabilities.cpus", message));
    }
    for (name, amount) in [("memory_gb", memory_gb), ("gpu_memory_gb", gpu_memory_gb)] {
        if let Some(amount) = amount.filter(|&amount| !(amount > 0.0 && amount <= MOST_MEMORY_GB)) {
            let message = format!("{name} is {amount}; it must be a number above 0, up to {MOST_MEMORY_GB}");
            return Err(Problem::invalid(format!("capabilities.{name}"), message));
        }
    }
    match gpu {
        Some(Gpu::Count(count)) if *count > MOST_GPUS => {
            let message = format!("gpu is {count}; {MOST_GPUS} are the most");
            Err(Problem::invalid("capabilities.gpu", message))
        }
        Some(Gpu::Named(name)) => check_name(name, "capabilities.gpu", "the name of a GPU"),
        _ => Ok(()),
    }
}

fn check_words(registration: &Registration) -> Result<(), Problem> {
    check_name(registration.id.as_str(), "id", "the worker's id")?;
    check_address(&registration.address, "address")?;
    check_version(&registration.version)?;
    check_speed(registration.speed, "speed")?;
    registration.capabilities.as_ref().map_or(Ok(()), check_capabilities)?;
    check_models(&registration.models)
}

fn check_version(version: &str) -> Result<(), Problem> {
    if version.len() > LONGEST_VERSION {
        let message = format!("the version has {} bytes; {LONGEST_VERSION} are the most", version.len());
        return Err(Problem::invalid("version", message));
    }
    if version.chars().any(char::is_control) {
        return Err(Problem::invalid("version", format!("the version, {version:?}, has control characters")));
    }
    Ok(())
}

async fn reach(outbound: &Outbound, registration: &Registration) -> Result<(), Problem> {
    match registration.transport {
        Transport::Http => outbound.reach(&registration.address, "/health").await,
        Transport::OpenAi => outbound.reach(&registration.address, "/v1/models").await,
        // It speaks nothing but gRPC there.
        Transport::Grpc => outbound.connect(&registration.address).await,
        // A FastChat worker has no health route.
        Transport::FastChat => outbound.ask_status(&registration.address).await.map(drop),
    }
    .map_err(|reason| Problem::invalid("address", reason))
}

/// Checks the state a FastChat worker tells of itself; a model named twice is taken once.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`] with the field at fault.
pub(crate) fn check_status(status: &mut WorkerStatus) -> Result<(), Problem> {
    check_speed(status.speed, "worker_status.speed")?;
    let mut seen = HashSet::new();
    status.model_names.retain(|name| seen.insert(name.clone()));
    if status.model_names.is_empty() {
        return Err(Problem::invalid("worker_status.model_names", "the worker offers no model"));
    }
    check_count(status.model_names.len(), "worker_status.model_names")?;
    let mut names = status.model_names.iter();
    names.try_for_each(|name| check_name(name, "worker_status.model_names", "the name of a model"))
}

/// Checks that an address is one that requests can be sent to.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`], naming `param`.
pub(crate) fn check_address(address: &str, param: &str) -> Result<(), Problem> {
    if address.len() > LONGEST_ADDRESS {
        let message = format!("the address has {} bytes; {LONGEST_ADDRESS} are the most", address.len());
        return Err(Problem::invalid(param, message));
    }
    let reason = match Url::parse(address) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => return Ok(()),
        Ok(url) => format!("its scheme is `{}`", url.scheme()),
        Err(error) => error.to_string(),
    };
    Err(Problem::invalid(param, format!("`{address}` is not an http or https URL: {reason}")))
}

fn check_speed(speed: f64, param: &str) -> Result<(), Problem> {
    if speed > 0.0 && speed <= FASTEST {
        return Ok(());
    }
    Err(Problem::invalid(param, format!("the speed is {speed}; it must be a number above 0, up to {FASTEST}")))
}

/// Checks that a name can be told to others.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`], naming `param`.
pub(crate) fn check_name(name: &str, param: &str, what: &str) -> Result<(), Problem> {
    let problem = if name.is_empty() {
        format!("{what} is empty")
    } else if name.len() > LONGEST_NAME {
        format!("{what} has {} bytes; {LONGEST_NAME} are the most", name.len())
    } else if name.chars().any(char::is_control) {
        format!("{what}, {name:?}, has control characters")
    } else {
        return Ok(());
    };
    Err(Problem::invalid(param, problem))
}

/// Checks that a worker offers no more models than one can.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`], naming `param`.
pub(crate) fn check_count(models: usize, param: &str) -> Result<(), Problem> {
    if models <= MOST_MODELS {
        return Ok(());
    }
    Err(Problem::invalid(param, format!("the worker offers {models} models; {MOST_MODELS} are the most")))
}

/// Checks the models of a worker. None is fine: gateways have such a worker load some.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`] with the field at fault.
pub(crate) fn check_models(models: &[ModelCard]) -> Result<(), Problem> {
    check_count(models.len(), "models")?;
    let mut seen = HashSet::new();
    for ModelCard { name, capacity, .. } in models {
        check_name(name, "models", "the name of a model")?;
        if !seen.insert(name) {
            return Err(Problem::invalid("models", format!("the model `{name}` is offered twice")));
        }
        if capacity.is_some_and(|capacity| capacity.total() == 0) {
            return Err(Problem::invalid("models", format!("the capacity of the model `{name}` is 0")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_http_url() {
        for good in ["http://localhost:21002", "https://w.example/base", "HTTP://[::1]:80"] {
            check_address(good, "address").expect(good);
        }
        for bad in ["", "localhost:21002", "10.0.0.1:80", "ftp://w", "http://", "w1"] {
            check_address(bad, "address").expect_err(bad);
        }
    }

    #[test]
    fn a_speed_is_a_number_above_zero() {
        check_speed(0.001, "speed").expect("above zero");
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            check_speed(bad, "speed").expect_err("not a speed");
        }
    }

    #[test]
    fn names_and_numbers_have_bounds() {
        let card = |name: &str| ModelCard::bare(name.to_owned());
        let many: Vec<_> = (0..=MOST_MODELS).map(|number| card(&number.to_string())).collect();
        let refused = check_models(&many).expect_err("too many");
        assert_eq!(refused.message, "the worker offers 4097 models; 4096 are the most");
        check_models(&many[1..]).expect("as many as there may be");
        for bad in ["", "a\nb", "\0", &"x".repeat(LONGEST_NAME + 1)] {
            check_models(&[card(bad)]).expect_err(bad);
            check_name(bad, "id", "the worker's id").expect_err(bad);
        }
        let long = format!("http://{}", "x".repeat(LONGEST_ADDRESS));
        check_address(&long, "address").expect_err("too long");
    }

    #[test]
    fn a_version_is_a_few_words_on_one_line() {
        let good = crate::fixtures::worker("w", 1);
        for fine in ["", "0.7.0", "v0.6.3.post1+cu124"] {
            check_words(&Registration { version: fine.to_owned(), ..good.clone() }).expect(fine);
        }
        for bad in ["1\n2", "\u{1b}[31m", &"1".repeat(LONGEST_VERSION + 1)] {
            let refused = check_words(&Registration { version: bad.to_owned(), ..good.clone() });
            assert_eq!(refused.expect_err(bad).param.as_deref(), Some("version"));
        }
    }

    #[test]
    fn a_heartbeat_tells_numbers() {
        let good = Heartbeat { speed: Some(3.5), ttft_ms: Some(0.0), ..crate::fixtures::beat("w", 1) };
        check_beat(&good).expect("it is fine");
        for (bad, param) in [
            (Heartbeat { speed: Some(-1.0), ..good.clone() }, "speed"),
            (Heartbeat { speed: Some(f64::NAN), ..good.clone() }, "speed"),
            (Heartbeat { ttft_ms: Some(-0.1), ..good.clone() }, "ttft_ms"),
            (Heartbeat { tokens_per_second: Some(f64::INFINITY), ..good.clone() }, "tokens_per_second"),
        ] {
            assert_eq!(check_beat(&bad).expect_err("it is none").param.as_deref(), Some(param));
        }
    }

    #[test]
    fn what_no_machine_has_is_refused_by_its_name() {
        let good = Capabilities { cpus: Some(4), gpu: Some(Gpu::Count(64)), memory_gb: Some(0.5), gpu_memory_gb: None };
        check_capabilities(&good).expect("a machine");
        check_capabilities(&Capabilities::default()).expect("nothing is told");
        for (bad, param) in [
            (Capabilities { cpus: Some(0), ..good.clone() }, "capabilities.cpus"),
            (Capabilities { memory_gb: Some(-1.0), ..good.clone() }, "capabilities.memory_gb"),
            (Capabilities { memory_gb: Some(f64::NAN), ..good.clone() }, "capabilities.memory_gb"),
            (Capabilities { gpu_memory_gb: Some(1e9), ..good.clone() }, "capabilities.gpu_memory_gb"),
            (Capabilities { gpu: Some(Gpu::Count(65)), ..good.clone() }, "capabilities.gpu"),
            (Capabilities { gpu: Some(Gpu::Named("a\n".to_owned())), ..good }, "capabilities.gpu"),
        ] {
            assert_eq!(check_capabilities(&bad).expect_err("no machine").param.as_deref(), Some(param));
        }
    }

    #[test]
    fn a_model_named_twice_by_a_fastchat_worker_is_taken_once() {
        let names = ["a", "b", "a"].map(str::to_owned).to_vec();
        let mut status = WorkerStatus { model_names: names, speed: 1.0, queue_length: 0 };
        check_status(&mut status).expect("it is fine");
        assert_eq!(status.model_names, ["a", "b"]);
    }
}
