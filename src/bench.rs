//! `muster bench`: how fast models are served, and what the services around them cost.
//!
//! Seven benches, with the tools they share: [`figures`] and [`histogram`] are the arithmetic, [`process`] is what the
//! system says of a process, [`http`] the protocol, [`report`] the printing.
//!
//! `engine`: how fast text is generated. [`local`] runs a model without HTTP ([`load`] gets it); [`remote`] drives a
//! server with made-up requests ([`prompts`], [`client`]) and looks at levels of load ([`level`]) and at two special
//! cases ([`probes`]).
//!
//! [`embed`]: how fast texts are embedded, by the pool and by ONNX Runtime alone.
//!
//! [`gateway`]: what a gateway costs, before workers that cost nothing: [`fake`].
//!
//! [`policies`]: what a dispatch policy makes of a fleet, in virtual time.
//!
//! [`dispatch`]: what a controller's decisions cost, by the size of its fleet; [`fleet`]: whether it sees who lives and
//! who does not, in a fleet of workers that beat. Both start a controller ([`child`]) before [`standins`] of workers.

mod child;
mod client;
mod dispatch;
mod embed;
mod fake;
mod figures;
mod fleet;
mod gateway;
mod histogram;
mod http;
mod level;
mod load;
mod local;
mod policies;
mod probes;
mod process;
mod prompts;
mod remote;
mod report;
mod standins;

use crate::cli::{BenchArgs, BenchVerb, EngineArgs};

/// Measures and prints, or is measured with.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    match args.what {
        BenchVerb::Engine(args) => engine(*args).await,
        BenchVerb::Embed(args) => embed::run(args).await,
        BenchVerb::Gateway(args) => gateway::run(*args).await,
        BenchVerb::FakeWorker(args) => fake::run(args).await,
        BenchVerb::Policies(args) => tokio::task::spawn_blocking(move || policies::run(&args)).await?,
        BenchVerb::Dispatch(args) => dispatch::run(*args).await,
        BenchVerb::Fleet(args) => fleet::run(args).await,
    }
}

async fn engine(args: EngineArgs) -> anyhow::Result<()> {
    match args.remote.url.clone() {
        Some(url) => remote::run(args, &url).await,
        // A thread of its own: a model computes for seconds.
        None => tokio::task::spawn_blocking(move || local::run(&args)).await?,
    }
}
