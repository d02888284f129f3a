//! Plain tensor models.
pub mod batch;
pub mod batcher;
pub mod check;
pub mod classify;
pub mod elements;
pub mod queue;
pub mod statistics;
