//! The model worker.

pub mod chat_template;
pub mod engine;
pub mod tokenizer;
