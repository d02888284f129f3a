//! muster: a fleet for ONNX models. Reads the command line, runs what it says, and turns the result into an exit code.

mod attach;
mod bench;
mod bind;
mod chat;
mod cli;
mod config;
mod doctor;
mod environment;
mod explain;
mod peers;
mod progress;
mod replay;
mod services;
mod status;
mod stop;
mod text;
mod trouble;
mod up;

use std::process::ExitCode;

use cli::{Cli, Verb};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    environment::prepare();
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runtime = match runtime(&cli.verb).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::from(error).context("cannot start the async runtime")),
    };
    let code = match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    };
    muster_shared::trace::close();
    // A read from the terminal may still block a thread; it must not hold up the end.
    runtime.shutdown_background();
    code
}

/// A controller's work is done in less time than it takes to wake another thread for a part of it, and a gateway has
/// threads of its own.
fn runtime(verb: &Verb) -> Builder {
    match verb {
        Verb::Controller(_) | Verb::Gateway(_) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    cli.logs.init(&cli.verb)?;
    muster_shared::telemetry::init_metrics();
    muster_shared::tls::provider();
    let mut file = config::File::load(cli.config.as_deref())?;
    file.traces = cli.traces.or(file.traces);
    if let Some(service) = cli.verb.service() {
        file.traces.open(service)?;
    }
    match cli.verb {
        Verb::Up(args) => up::run(args, file, cli.logs.bars()).await,
        Verb::Controller(args) => services::controller(args, file).await,
        Verb::Worker(args) => services::worker(args, file).await,
        Verb::Gateway(args) => services::gateway(args, file).await,
        Verb::Attach(args) => attach::run(args, file).await,
        Verb::Status(args) => status::run(args).await,
        Verb::Drain(args) => status::drain(args).await,
        Verb::Resume(args) => status::resume(args).await,
        Verb::Models(args) => status::models(args).await,
        Verb::Peers(args) => peers::run(&args),
        Verb::Explain(args) => explain::run(args).await,
        Verb::Journal(args) => explain::save(args).await,
        Verb::Replay(args) => replay::run(&args),
        Verb::Chat(args) => chat::run(args).await,
        Verb::Bench(args) => bench::run(args).await,
        Verb::Doctor(args) => doctor::run(args, file),
    }
}

/// One line for people, with the causes.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("muster: {error:#}");
    ExitCode::FAILURE
}
