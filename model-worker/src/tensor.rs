//! Plain tensor models.
pub mod check;
pub mod classify;
pub mod elements;
