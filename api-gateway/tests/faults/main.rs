//! Workers, clients and controllers that fail in every way, and what the gateway makes of it.

#[path = "../peers/mod.rs"]
mod peers;

mod clients;
mod outage;
mod passthrough;
mod resume;
mod timeouts;
