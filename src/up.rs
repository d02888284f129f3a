//! `muster up`: controller, worker and gateway in one process.

use std::time::Duration;

use anyhow::Context as _;
use muster_shared::client::{ControllerClient, Timeouts, http_client};
use muster_shared::control::{Fleet, ModelKind};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bind::{Guard, bind};
use crate::cli::UpArgs;
use crate::config::{ControllerSection, File, GatewaySection, WorkerSection};
use crate::progress::Progress;
use crate::services::say;
use crate::stop;

/// Time between two looks whether everything is ready.
const LOOK: Duration = Duration::from_millis(50);

/// Starts everything, says where it is, and runs until told to stop.
pub(crate) async fn run(args: Box<UpArgs>, file: File) -> anyhow::Result<()> {
    let stop = stop::on_signal();
    let plan = Plan::new(*args, file)?;
    let listeners = Listeners::bind(&plan).await?;
    let progress = Progress::new();
    let (mut services, front) = start(plan, listeners, &progress)?;
    let failure = tokio::select! {
        () = greet(&front, &stop) => None,
        failure = services.first_failure() => Some(failure),
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
        let policy = ControllerSection { policy: args.policy, ..ControllerSection::default() };
        let models = WorkerSection { models: args.models, ..WorkerSection::default() };
        let (controller_port, worker_port) = (file.controller.port, file.worker.port);
        Ok(Self {
            controller: policy.or(file.controller).or(ControllerSection::defaults()),
            controller_port: args.controller_port.or(controller_port),
            worker: models.or(file.worker).or(WorkerSection::defaults()),
            worker_port: args.worker_port.or(worker_port),
            gateway: args.gateway.or(file.gateway).or(GatewaySection::defaults()),
        })
    }
}

/// The three addresses.
struct Listeners {
    controller: TcpListener,
    worker: TcpListener,
    gateway: TcpListener,
}

impl Listeners {
    async fn bind(plan: &Plan) -> anyhow::Result<Self> {
        let gateway = plan.gateway.config()?;
        let guard = Guard {
            locked: !gateway.keys.is_empty(),
            insecure: plan.gateway.insecure == Some(true),
            flag: "--api-key-file",
        };
        let host = plan.gateway.host.as_deref().unwrap_or("127.0.0.1");
        Ok(Self {
            gateway: bind("gateway", host, plan.gateway.port.unwrap_or(8000), guard).await?,
            controller: inner("controller", plan.controller_port, 21001).await?,
            worker: inner("worker", plan.worker_port, 21002).await?,
        })
    }
}

/// A port for a service that only this machine talks to: as told, else the usual one, else a free one.
async fn inner(service: &str, told: Option<u16>, usual: u16) -> anyhow::Result<TcpListener> {
    let guard = Guard { locked: false, insecure: false, flag: "--fleet-token-file" };
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
fn start(plan: Plan, listeners: Listeners, progress: &Progress) -> anyhow::Result<(Services, Front)> {
    let controller_address = format!("http://{}", listeners.controller.local_addr()?);
    let gateway_address = format!("http://{}", listeners.gateway.local_addr()?);
    let controller_config = plan.controller.config()?;
    let token = controller_config.token.clone();

    let worker = WorkerSection { controller_address: Some(controller_address.clone()), ..plan.worker };
    let mut worker_config = worker.config()?;
    worker_config.token.clone_from(&token);
    worker_config.observer = Some(progress.observer());

    let gateway = GatewaySection { controller_address: Some(controller_address.clone()), ..plan.gateway };
    let mut gateway_config = gateway.config()?;
    gateway_config.token.clone_from(&token);

    let front = Front {
        controller: ControllerClient::new(http_client(Timeouts::default()), controller_address, token),
        gateway: gateway_address,
        models: worker_config.models.len(),
        keyed: !gateway_config.keys.is_empty(),
        progress: progress.clone(),
    };
    let Listeners { controller, worker, gateway } = listeners;
    let services = Services([
        Service::start("gateway", |stop| Box::pin(muster_gateway::run(gateway_config, gateway, stop))),
        Service::start("worker", |stop| Box::pin(muster_worker::run(worker_config, worker, stop))),
        Service::start("controller", |stop| Box::pin(muster_controller::run(controller_config, controller, stop))),
    ]);
    Ok((services, front))
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
    gateway: String,
    /// Models that shall be served.
    models: usize,
    /// Whether clients must show a key.
    keyed: bool,
    progress: Progress,
}

impl Front {
    /// Waits until every model that can be loaded is registered, then takes the bars away.
    async fn wait_until_ready(&self) -> Fleet {
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            let wanted = self.models - self.progress.failures().len();
            if let Ok(fleet) = self.controller.fleet().await
                && wanted > 0
                && fleet.models.len() >= wanted
                && self.gateway_is_ready().await
            {
                self.progress.finish();
                return fleet;
            }
        }
    }

    async fn gateway_is_ready(&self) -> bool {
        let answer = reqwest::get(format!("{}/ready", self.gateway)).await;
        answer.is_ok_and(|response| response.status().is_success())
    }

    /// Tells the user what to do now.
    fn introduce(&self, fleet: &Fleet) {
        let Self { gateway, .. } = self;
        for (model, reason) in self.progress.failures() {
            eprintln!("muster: {model} is not served: {reason}");
        }
        say(&format!("muster is ready: OpenAI API at {gateway}/v1, controller at {}", self.controller.address()));
        for model in &fleet.models {
            let kind = match model.kind {
                Some(ModelKind::Embed) => "embeddings",
                _ => "chat and completions",
            };
            say(&format!("  model {} ({kind})", model.name));
        }
        let Some(model) = fleet.models.iter().find(|model| model.kind != Some(ModelKind::Embed)) else { return };
        let name = &model.name;
        let (header, key) =
            if self.keyed { ("-H 'authorization: Bearer YOUR_KEY' ", "YOUR_KEY") } else { ("", "none") };
        say("\nTry it:");
        say(&format!(
            "  curl {gateway}/v1/chat/completions {header}-H 'content-type: application/json' \
             -d '{{\"model\": \"{name}\", \"messages\": [{{\"role\": \"user\", \"content\": \"What is muster?\"}}]}}'"
        ));
        say(&format!(
            "  python3 -c \"from openai import OpenAI; c = OpenAI(base_url='{gateway}/v1', api_key='{key}'); \
             print(c.chat.completions.create(model='{name}', messages=[dict(role='user', content='What is muster?')]).choices[0].message.content)\""
        ));
        say("\nCtrl-C stops it.");
    }
}
