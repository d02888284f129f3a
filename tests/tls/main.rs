//! Fleets of real processes that speak TLS, with certificates made by the tests.

mod authority;
#[path = "../common/mod.rs"]
mod common;
mod fleet;
mod refusals;
mod swaps;
mod wire;
