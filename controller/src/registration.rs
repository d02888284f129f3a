//! What a registration must be like before the registry sees it.

use std::collections::HashSet;

use muster_shared::control::{ModelCard, Registration};
use muster_shared::fastchat::WorkerStatus;
use muster_shared::problem::Problem;
use muster_shared::transport::Transport;
use reqwest::Url;

use crate::outbound::Outbound;

/// Checks a registration by itself, and then that its worker can be reached.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`] with the field at fault.
pub(crate) async fn check(outbound: &Outbound, registration: &Registration) -> Result<(), Problem> {
    if registration.id.as_str().is_empty() {
        return Err(Problem::invalid("id", "the worker's id is empty"));
    }
    check_address(&registration.address, "address")?;
    check_speed(registration.speed, "speed")?;
    check_models(&registration.models)?;
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
    if status.model_names.iter().any(String::is_empty) {
        return Err(Problem::invalid("worker_status.model_names", "the name of a model is empty"));
    }
    Ok(())
}

/// Checks that an address is one that requests can be sent to.
///
/// # Errors
/// [`muster_shared::problem::Kind::Invalid`], naming `param`.
pub(crate) fn check_address(address: &str, param: &str) -> Result<(), Problem> {
    let reason = match Url::parse(address) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => return Ok(()),
        Ok(url) => format!("its scheme is `{}`", url.scheme()),
        Err(error) => error.to_string(),
    };
    Err(Problem::invalid(param, format!("`{address}` is not an http or https URL: {reason}")))
}

fn check_speed(speed: f64, param: &str) -> Result<(), Problem> {
    if speed.is_finite() && speed > 0.0 {
        return Ok(());
    }
    Err(Problem::invalid(param, format!("the speed is {speed}; it must be a number above 0")))
}

/// None is fine: gateways have such a worker load some.
fn check_models(models: &[ModelCard]) -> Result<(), Problem> {
    let mut seen = HashSet::new();
    for ModelCard { name, capacity, .. } in models {
        if name.is_empty() {
            return Err(Problem::invalid("models", "the name of a model is empty"));
        }
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
    fn a_model_named_twice_by_a_fastchat_worker_is_taken_once() {
        let names = ["a", "b", "a"].map(str::to_owned).to_vec();
        let mut status = WorkerStatus { model_names: names, speed: 1.0, queue_length: 0 };
        check_status(&mut status).expect("it is fine");
        assert_eq!(status.model_names, ["a", "b"]);
    }
}
