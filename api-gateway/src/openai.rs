//! OpenAI's bodies, in and out, and nothing else.
//!
//! In: [`fields`] reads a JSON object field by field; [`options`] and [`sampling`] read what chat and completions have in
//! common, [`texts`] what the endpoints of text models have in common, [`unsupported`] refuses what would change the answer and cannot be done. Out: [`reply`] is the frame of every
//! answer and of every chunk of a stream, [`answer`] collects one choice, [`logprobs`] has both forms of
//! log-probabilities. [`endpoint`] is what bodies have in common whose answer comes in one piece. [`peek`] reads what
//! decides where a request goes. [`error`] is the only place that knows OpenAI's error types.

pub(crate) mod answer;
pub(crate) mod chat;
pub(crate) mod classify;
pub(crate) mod completion;
pub(crate) mod embedding;
pub(crate) mod endpoint;
pub(crate) mod entities;
pub(crate) mod error;
pub(crate) mod fields;
pub(crate) mod logprobs;
pub(crate) mod models;
pub(crate) mod moderation;
pub(crate) mod options;
pub(crate) mod peek;
pub(crate) mod reply;
pub(crate) mod rerank;
pub(crate) mod sampling;
#[cfg(test)]
mod tests;
pub(crate) mod texts;
pub(crate) mod tokenize;
pub(crate) mod unsupported;

pub(crate) use reply::ReplyHead;
