//! `muster up`: controller, worker and gateway in one process.

mod banner;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use muster_shared::client::{ControllerClient, Timeouts, http_client};
use muster_shared::control::Fleet;
use muster_shared::secret::Secret;
use muster_shared::tls::Tls;
use muster_shared::topology::Node;
use muster_worker::config::ModelControl;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use banner::Banner;

use crate::bind::{Guard, bind};
use crate::cli::UpArgs;
use crate::config::{ControllerSection, File, GatewaySection, GrpcPort, TlsSection, WorkerSection, is_set};
use crate::progress::Progress;
use crate::services::{GRPC_PORT, say};
use crate::stop;

/// Time between two looks whether everything is ready.
const LOOK: Duration = Duration::from_millis(50);
/// Wait after which the user is told what is waited for.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// Time between two such words.
const NEXT_WORD: Duration = Duration::from_secs(30);

/// Starts everything, says where it is, and runs until told to stop. `bars` draws how far loading has come.
pub(crate) async fn run(args: Box<UpArgs>, file: File, bars: bool) -> anyhow::Result<()> {
    let stop = stop::on_signal();
    let plan = Plan::new(*args, file)?;
    let listeners = Listeners::bind(&plan).await?;
    let progress = Progress::new(bars);
    let (mut services, front, tls) = start(plan, listeners, &progress)?;
    let failure = tokio::select! {
        () = greet(&front, &stop) => None,
        failure = services.first_failure() => Some(failure),
        never = tls.keep() => match never {},
    };
    progress.finish();
    // The failure that came first is the reason; what follows from it is not.
    let stopped = services.stop().await;
    failure.map_or(stopped, Err)
}

/// Introduces the fleet when it is ready; resolves when it shall stop.
async fn greet(front: &Front, stop: &CancellationToken) {
    tokio::select! {
        fleet = front.wait_until_ready() => front.introduce(&fleet),
        () = stop.cancelled() => return,
    }
    stop.cancelled().await;
}

/// The three configurations.
struct Plan {
    controller: ControllerSection,
    controller_port: Option<u16>,
    worker: WorkerSection,
    worker_port: Option<u16>,
    gateway: GatewaySection,
}

impl Plan {
    fn new(args: UpArgs, file: File) -> anyhow::Result<Self> {
        anyhow::ensure!(
            args.gateway.controller_address.is_none(),
            "--controller-address: `up` runs a controller of its own; for another, start `muster worker` and \
             `muster gateway`"
        );
        let ignored = ignored(&file);
        if !ignored.is_empty() {
            tracing::warn!("`up` makes these itself and ignores them: {}", ignored.join(", "));
        }
        let token = || (args.gateway.fleet_token.clone(), args.gateway.fleet_token_file.clone());
        let (fleet_token, fleet_token_file) = token();
        let policy = ControllerSection {
            policy: args.policy,
            fleet_token,
            fleet_token_file,
            admin_key: args.admin_key,
            admin_key_file: args.admin_key_file,
            peers: args.peers,
            ..ControllerSection::default()
        };
        let (fleet_token, fleet_token_file) = token();
        let models = WorkerSection { models: args.models, fleet_token, fleet_token_file, ..WorkerSection::default() };
        let (controller_port, worker_port) = (file.controller.port, file.worker.port);
        let worker = WorkerSection {
            no_register: None,
            worker_address: None,
            worker_id: None,
            controller_address: None,
            tls: TlsSection::default(),
            // What the gateway lets in shall not end at the worker.
            body_limit: file.worker.body_limit.or(args.gateway.body_limit).or(file.gateway.body_limit),
            ..file.worker
        };
        let gateway = GatewaySection { controller_address: None, ..file.gateway };
        Ok(Self {
            controller: policy
                .or(ControllerSection { tls: TlsSection::default(), ..file.controller })
                .or(ControllerSection::defaults()),
            controller_port: args.controller_port.or(controller_port),
            worker: models.or(worker).or(WorkerSection::defaults()),
            worker_port: args.worker_port.or(worker_port),
            gateway: args.gateway.or(gateway).or(GatewaySection::defaults()).with_grpc_port(),
        })
    }
}

/// What is said outside of the command line and cannot hold for services that `up` puts together itself.
fn ignored(file: &File) -> Vec<&'static str> {
    let address = "MUSTER_CONTROLLER_ADDRESS";
    let File { controller, worker, gateway, .. } = file;
    let said = [
        (is_set(address), address),
        (controller.host.is_some(), "controller.host"),
        (worker.host.is_some(), "worker.host"),
        (worker.no_register.is_some(), "worker.no_register"),
        (worker.worker_address.is_some(), "worker.worker_address"),
        (worker.worker_id.is_some(), "worker.worker_id"),
        (worker.controller_address.is_some(), "worker.controller_address"),
        (gateway.controller_address.is_some(), "gateway.controller_address"),
        (!controller.tls.is_empty(), "controller.tls"),
        (!worker.tls.is_empty(), "worker.tls"),
    ];
    said.into_iter().filter_map(|(said, name)| said.then_some(name)).collect()
}

/// The one token of all three services, whichever section says it.
fn one_token(tokens: [&Option<Secret>; 3]) -> anyhow::Result<Option<Secret>> {
    let said: Vec<&Secret> = tokens.into_iter().flatten().collect();
    anyhow::ensure!(
        said.windows(2).all(|pair| pair[0].matches(pair[1].expose())),
        "the file has different fleet tokens for controller, worker and gateway; `up` runs them with one"
    );
    Ok(said.first().map(|token| (*token).clone()))
}

/// The three addresses.
struct Listeners {
    controller: TcpListener,
    worker: muster_worker::Listeners,
    gateway: muster_gateway::Listeners,
}

impl Listeners {
    async fn bind(plan: &Plan) -> anyhow::Result<Self> {
        let gateway = plan.gateway.config()?;
        let guard = Guard::keys(!gateway.keys.is_empty() || gateway.tls.is_locked(), plan.gateway.insecure);
        let host = plan.gateway.host.as_deref().unwrap_or("127.0.0.1");
        Ok(Self {
            gateway: muster_gateway::Listeners {
                http: bind("gateway", host, plan.gateway.port.unwrap_or(8000), guard).await?,
                grpc: match plan.gateway.grpc_port.and_then(GrpcPort::port) {
                    Some(port) => Some(bind("gateway", host, port, Guard { port_flag: GRPC_PORT, ..guard }).await?),
                    None => None,
                },
            },
            controller: inner("controller", plan.controller_port, 21001, "--controller-port").await?,
            worker: muster_worker::Listeners {
                http: inner("worker", plan.worker_port, 21002, "--worker-port").await?,
                grpc: match plan.worker.grpc_port {
                    Some(port) => Some(inner("worker", Some(port), port, "worker.grpc_port").await?),
                    None => None,
                },
            },
        })
    }
}

/// A port for a service that only this machine talks to: as told, else the usual one, else a free one.
async fn inner(service: &str, told: Option<u16>, usual: u16, port_flag: &'static str) -> anyhow::Result<TcpListener> {
    let guard = Guard { port_flag, ..Guard::token(false, None) };
    let host = "127.0.0.1";
    match told {
        Some(port) => bind(service, host, port, guard).await,
        None => match bind(service, host, usual, guard).await {
            Ok(listener) => Ok(listener),
            Err(_) => bind(service, host, 0, guard).await,
        },
    }
}

/// A service that runs, and the token that stops it.
struct Service {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Service {
    fn start<E: Into<anyhow::Error> + 'static>(
        name: &'static str,
        run: impl FnOnce(CancellationToken) -> RunFuture<E>,
    ) -> Self {
        let stop = CancellationToken::new();
        let run = run(stop.clone());
        Self { name, stop, task: tokio::spawn(async move { run.await.map_err(Into::into) }) }
    }

    /// Waits for the end of a service that was not told to end.
    async fn failure(&mut self) -> anyhow::Error {
        match (&mut self.task).await {
            Ok(Ok(())) => anyhow::anyhow!("{} ended by itself", self.name),
            Ok(Err(error)) => error.context(self.name),
            Err(error) => anyhow::Error::from(error).context(self.name),
        }
    }
}

type RunFuture<E> = std::pin::Pin<Box<dyn Future<Output = Result<(), E>> + Send>>;

/// Starts the three services, each with the others' addresses.
fn start(plan: Plan, listeners: Listeners, progress: &Progress) -> anyhow::Result<(Services, Front, Tls)> {
    let controller_address = format!("http://{}", listeners.controller.local_addr()?);
    let grpc = listeners.gateway.grpc.as_ref().map(TcpListener::local_addr).transpose()?;
    let mut controller_config = plan.controller.config()?;
    controller_config.peers = plan.controller.peers(&listeners.controller)?;
    let worker = WorkerSection { controller_address: Some(controller_address.clone()), ..plan.worker };
    let mut worker_config = worker.config()?;
    worker_config.observer = Some(progress.observer());

    let gateway = GatewaySection { controller_address: Some(controller_address.clone()), ..plan.gateway };
    let mut gateway_config = gateway.config()?;
    let tls = gateway_config.tls.clone();
    controller_config.tls = tls.for_calls(); // peers in a file may be reached by https
    let gateway_address = format!("{}://{}", tls.scheme(), listeners.gateway.http.local_addr()?);

    let token = one_token([&controller_config.token, &worker_config.token, &gateway_config.token])?;
    for place in [&mut controller_config.token, &mut worker_config.token, &mut gateway_config.token] {
        place.clone_from(&token);
    }

    let http = http_client(Timeouts::default());
    let front = Front {
        controller: ControllerClient::new(http.clone(), controller_address, token),
        http,
        gateway: gateway_address,
        grpc: grpc.map(|address| format!("{}://{address}", tls.scheme())),
        is_secure: tls.is_served(),
        models: worker_config.models.iter().map(|model| model.name.clone()).collect(),
        may_come: worker_config
            .repository
            .as_ref()
            .is_some_and(|repository| repository.control == ModelControl::Explicit && repository.load.is_empty()),
        keyed: !gateway_config.keys.is_empty(),
        progress: progress.clone(),
    };
    let Listeners { controller, worker, gateway } = listeners;
    let services = Services([
        Service::start("gateway", |stop| Box::pin(muster_gateway::run(gateway_config, gateway, stop))),
        Service::start("worker", |stop| Box::pin(muster_worker::run(worker_config, worker, stop))),
        Service::start("controller", |stop| {
            let run = muster_controller::run(controller_config, controller, stop);
            Box::pin(async move {
                run.await;
                Ok::<(), Infallible>(())
            })
        }),
    ]);
    Ok((services, front, tls))
}

/// The three services, in the order in which they are stopped.
struct Services([Service; 3]);

impl Services {
    async fn first_failure(&mut self) -> anyhow::Error {
        let [gateway, worker, controller] = &mut self.0;
        tokio::select! {
            failure = gateway.failure() => failure,
            failure = worker.failure() => failure,
            failure = controller.failure() => failure,
        }
    }

    /// Stops one after the other: no new requests, then no worker, then no registry.
    async fn stop(self) -> anyhow::Result<()> {
        for service in self.0 {
            service.stop.cancel();
            if service.task.is_finished() {
                continue; // its end is known already
            }
            service.task.await.with_context(|| format!("{} crashed", service.name))?.context(service.name)?;
        }
        Ok(())
    }
}

/// The fleet as its user sees it.
struct Front {
    controller: ControllerClient,
    http: reqwest::Client,
    gateway: String,
    /// Where the gateway speaks gRPC, if it does.
    grpc: Option<String>,
    /// Models that shall be served.
    models: Vec<String>,
    /// Whether models may come later, so that there need be none now.
    may_come: bool,
    /// Whether clients must show a key.
    keyed: bool,
    /// Whether the gateway is reached by https, at names that need not be this machine's own.
    is_secure: bool,
    progress: Progress,
}

impl Front {
    /// Waits until every model that can be loaded is registered, then takes the bars away.
    ///
    /// A long wait is explained, again and again.
    async fn wait_until_ready(&self) -> Fleet {
        let begin = Instant::now();
        let mut word = FIRST_WORD;
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            match self.look().await {
                Ok(fleet) => {
                    self.progress.finish();
                    return fleet;
                }
                Err(wait) if begin.elapsed() >= word => {
                    let seconds = begin.elapsed().as_secs();
                    self.progress.tell(&format!("muster: not ready after {seconds} s, waiting for {wait}"));
                    word += NEXT_WORD;
                }
                Err(_) => {}
            }
        }
    }

    /// Whether there may be nothing to serve yet.
    fn is_open(&self) -> bool {
        self.may_come && self.models.is_empty()
    }

    /// The fleet if everything is ready, else what is not.
    async fn look(&self) -> Result<Fleet, String> {
        let address = self.controller.address();
        let fleet = self.controller.fleet().await.map_err(|error| format!("the controller at {address}: {error}"))?;
        let failures = self.progress.failures();
        if let Some(wait) = missing(&self.models, &failures, &fleet).filter(|_| !self.is_open()) {
            return Err(wait);
        }
        if self.is_secure {
            let topology = self.controller.topology().await.map_err(|error| error.to_string())?;
            let is_there = topology.nodes.iter().any(|node| matches!(node, Node::Gateway(_)));
            return is_there.then_some(fleet).ok_or_else(|| format!("the gateway at {}: no controller", self.gateway));
        }
        match self.http.get(format!("{}/ready", self.gateway)).send().await {
            Ok(answer) if answer.status().is_success() => Ok(fleet),
            Ok(answer) => Err(format!("the gateway at {}: it answers {}", self.gateway, answer.status())),
            Err(error) => Err(format!("the gateway at {}: {error}", self.gateway)),
        }
    }

    /// Tells the user what to do now.
    fn introduce(&self, fleet: &Fleet) {
        for (model, reason) in self.progress.failures() {
            eprintln!("muster: {model} is not served: {reason}");
        }
        let program = std::env::args_os().next().unwrap_or_else(|| "muster".into());
        let banner = Banner {
            program: &program.to_string_lossy(),
            gateway: &self.gateway,
            grpc: self.grpc.as_deref(),
            controller: self.controller.address(),
            keyed: self.keyed,
            models: &fleet.models,
        };
        say(&banner.text());
    }
}

/// Models that are neither in the fleet nor known to be unusable, in words; `None` when there are none.
fn missing(models: &[String], failures: &BTreeMap<String, String>, fleet: &Fleet) -> Option<String> {
    let served = |name: &String| fleet.models.iter().any(|model| model.name == *name);
    let missing: Vec<&str> =
        models.iter().filter(|name| !served(name) && !failures.contains_key(*name)).map(String::as_str).collect();
    match missing[..] {
        // Without any model the worker ends, and says why.
        [] if fleet.models.is_empty() => Some("the worker to end: no model could be loaded".to_owned()),
        [] => None,
        [model] => Some(format!("model {model} to load and register")),
        _ => Some(format!("models {} to load and register", missing.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_serves_all_or_none() {
        let [a, b] = ["a", "b"].map(|token| Some(Secret::new(token)));
        let token = |tokens| one_token(tokens).map(|token| token.map(|token| token.expose().to_owned()));
        assert_eq!(token([&None, &None, &None]).expect("no token"), None);
        assert_eq!(token([&None, &b, &None]).expect("one token"), Some("b".to_owned()));
        assert_eq!(token([&a, &None, &a]).expect("one token"), Some("a".to_owned()));
        assert!(token([&a, &None, &b]).expect_err("two tokens").to_string().contains("different fleet tokens"));
    }
}
