//! `muster bench engine`: how fast text is generated, by a model in this process or by any OpenAI-compatible server.
//!
//! Reading order: [`local`] runs a model without HTTP ([`load`] gets it); [`remote`] drives a server with made-up
//! requests ([`prompts`], [`client`]) and looks at levels of load ([`level`]) and at two special cases ([`probes`]).
//! [`figures`] is the arithmetic, [`process`] what the system says of a process, [`report`] the printing.

mod client;
mod figures;
mod level;
mod load;
mod local;
mod probes;
mod process;
mod prompts;
mod remote;
mod report;

use crate::cli::{BenchArgs, BenchVerb};

/// Measures and prints.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    let BenchVerb::Engine(args) = args.what;
    match args.remote.url.clone() {
        Some(url) => remote::run(*args, &url).await,
        // A thread of its own: a model computes for seconds.
        None => tokio::task::spawn_blocking(move || local::run(&args)).await?,
    }
}
