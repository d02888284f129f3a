//! Plain tensor models.
pub mod batch;
pub mod batcher;
pub mod check;
pub mod classify;
pub mod elements;
pub mod layout;
pub mod pbtxt;
pub mod queue;
pub mod settings;
pub mod statistics;
pub mod trial;
pub mod version;
