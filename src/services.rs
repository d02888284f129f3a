//! One service in this process: `muster controller`, `muster worker`, `muster gateway`.

use std::io::Write as _;

use muster_worker::Listeners;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::bind::{Guard, bind};
use crate::cli::{ControllerArgs, GatewayArgs, WorkerArgs};
use crate::config::{AttachSection, ControllerSection, File, GatewaySection, GrpcPort, TracesSection, WorkerSection};
use crate::stop;

/// What moves a gateway's gRPC elsewhere.
pub(crate) const GRPC_PORT: &str = "--grpc-port, `off` for none";

/// Runs a controller until it is told to stop.
pub(crate) async fn controller(args: Box<ControllerArgs>, file: File) -> anyhow::Result<()> {
    let section = args.section.or(file.controller).or(ControllerSection::defaults());
    let mut config = section.config()?;
    if args.print.print_config {
        return print(&Printed { controller: Some(&section), traces: Some(&file.traces), ..Printed::default() });
    }
    let stop = stop::on_signal();
    let guard = Guard::token(config.token.is_some() || config.tls.is_locked(), section.insecure);
    let listener = listen("controller", &section.host, section.port, guard).await?;
    config.peers = section.peers(&listener)?;
    announce("controller", config.tls.scheme(), &listener)?;
    let tls = config.tls.clone();
    tokio::select! {
        () = muster_controller::run(config, listener, stop) => Ok(()),
        never = tls.keep() => match never {},
    }
}

/// Runs a worker until it is told to stop.
pub(crate) async fn worker(args: Box<WorkerArgs>, file: File) -> anyhow::Result<()> {
    let section = args.section.or(file.worker).or(WorkerSection::defaults());
    let config = section.config()?;
    if args.print.print_config {
        let models = Some(&section.models);
        return print(&Printed { worker: Some(&section), models, traces: Some(&file.traces), ..Printed::default() });
    }
    let stop = stop::on_signal();
    let guard = Guard::token(config.token.is_some() || config.tls.is_locked(), section.insecure);
    let listener = listen("worker", &section.host, section.port, guard).await?;
    anyhow::ensure!(
        config.registration.is_none() || config.address.is_some() || !listener.local_addr()?.ip().is_unspecified(),
        "worker: {} is no address at which peers can reach it; say which with --worker-address {}://HOST:PORT",
        listener.local_addr()?,
        config.tls.scheme()
    );
    let grpc = match section.grpc_port {
        Some(port) => {
            Some(listen("worker", &section.host, Some(port), Guard { port_flag: "--grpc-port", ..guard }).await?)
        }
        None => None,
    };
    announce("worker", config.tls.scheme(), &listener)?;
    if let Some(grpc) = &grpc {
        say(&speaks_grpc("worker", &format!("{}://{}", config.tls.scheme(), grpc.local_addr()?)));
    }
    let tls = config.tls.clone();
    tokio::select! {
        result = muster_worker::run(config, Listeners { http: listener, grpc }, stop) => Ok(result?),
        never = tls.keep() => match never {},
    }
}

/// Runs a gateway until it is told to stop.
pub(crate) async fn gateway(args: Box<GatewayArgs>, file: File) -> anyhow::Result<()> {
    let section = args.section.or(file.gateway).or(GatewaySection::defaults()).with_grpc_port();
    let config = section.config()?;
    if args.print.print_config {
        return print(&Printed { gateway: Some(&section), traces: Some(&file.traces), ..Printed::default() });
    }
    let stop = stop::on_signal();
    let guard = Guard::keys(!config.keys.is_empty() || config.tls.is_locked(), section.insecure);
    let listener = listen("gateway", &section.host, section.port, guard).await?;
    let grpc = match section.grpc_port.and_then(GrpcPort::port) {
        Some(port) => {
            Some(listen("gateway", &section.host, Some(port), Guard { port_flag: GRPC_PORT, ..guard }).await?)
        }
        None => None,
    };
    announce("gateway", config.tls.scheme(), &listener)?;
    if let Some(grpc) = &grpc {
        say(&speaks_grpc("gateway", &format!("{}://{}", config.tls.scheme(), grpc.local_addr()?)));
    }
    let tls = config.tls.clone();
    tokio::select! {
        result = muster_gateway::run(config, muster_gateway::Listeners { http: listener, grpc }, stop) => Ok(result?),
        never = tls.keep() => match never {},
    }
}

/// Takes the service's address.
async fn listen(service: &str, host: &Option<String>, port: Option<u16>, guard: Guard) -> anyhow::Result<TcpListener> {
    bind(service, host.as_deref().unwrap_or("127.0.0.1"), port.unwrap_or(0), guard).await
}

/// Says on standard output where the service is.
pub(crate) fn announce(service: &str, scheme: &str, listener: &TcpListener) -> anyhow::Result<()> {
    say(&format!("{service} listening on {scheme}://{}", listener.local_addr()?));
    Ok(())
}

/// What says where a service speaks gRPC.
pub(crate) fn speaks_grpc(service: &str, address: &str) -> String {
    format!("{service} speaks gRPC on {address}")
}

/// A line on standard output, for people and for the programs that started this one.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout();
    // Nobody may be reading; the service runs all the same.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// What `--print-config` shows: the sections of a file.
#[derive(Default, Serialize)]
struct Printed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    controller: Option<&'a ControllerSection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a WorkerSection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<&'a GatewaySection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<&'a crate::config::ModelSection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attach: Option<&'a AttachSection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traces: Option<&'a TracesSection>,
}

/// Shows the configuration of `muster attach`.
pub(crate) fn print_attach(section: &AttachSection) -> anyhow::Result<()> {
    print(&Printed { attach: Some(section), ..Printed::default() })
}

fn print(printed: &Printed<'_>) -> anyhow::Result<()> {
    say(serde_saphyr::to_string(printed)?.trim_end());
    Ok(())
}
