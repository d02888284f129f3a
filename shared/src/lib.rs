//! The words muster's services exchange, and the few tools all of them need to speak them.
//!
//! ```text
//!   api-gateway ──link: dispatch, release──▶ controller ◀──register, heartbeat── model-worker
//!        └──────────────generate, embed (token events, over HTTP or gRPC)──────────────▶┘
//! ```
//!
//! Nothing here knows OpenAI's bodies, a model file or a dispatch policy. In reading order:
//!
//! * [`id`]: names of workers, gateways and tickets.
//! * [`transport`]: how a worker wants to be spoken to.
//! * [`control`]: what workers and gateways say to the controller.
//! * [`topology`]: what the controller shows of its fleet.
//! * [`generate`], [`embed`] and [`text`]: what a gateway asks of a worker, and what it gets back.
//! * [`tensor`]: the same for any graph, in the terms of the Open Inference Protocol.
//! * [`link`] (feature `link`): the connection over which a gateway and its controller exchange them.
//! * [`resume`]: how far an answer has come, so that another worker can go on with it.
//! * [`problem`]: the one error body between our processes.
//! * [`fastchat`]: the words of FastChat's HTTP contract.
//! * [`journal`]: why a worker was chosen.
//! * [`sse`]: server-sent events, encoded and decoded.
//! * [`watch`]: files that are read again when they change.
//! * [`secret`]: keys that neither print nor leak through timing.
//! * [`tls`] (feature `tls`): connections that nobody else can read, with certificates that may change.
//! * [`client`] (feature `client`): typed clients of the controller and of a worker.
//! * [`grpc`] (feature `grpc`): the same messages over gRPC, and a client of a worker that speaks it.
//! * [`serve`] and [`telemetry`] (feature `serve`): serving and draining a router, logs and metrics.
//! * [`trace`] (feature `trace`): spans of requests, sent over OTLP.
//! * [`assets`] (feature `serve`): the files of web pages.

#[cfg(feature = "serve")]
pub mod assets;
#[cfg(feature = "client")]
pub mod client;
pub mod control;
pub mod embed;
pub mod fastchat;
pub mod generate;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod id;
pub mod journal;
#[cfg(feature = "link")]
pub mod link;
pub mod problem;
pub mod resume;
pub mod secret;
#[cfg(feature = "serve")]
pub mod serve;
pub mod sse;
#[cfg(feature = "serve")]
pub mod telemetry;
pub mod tensor;
pub mod text;
#[cfg(feature = "tls")]
pub mod tls;
pub mod topology;
#[cfg(feature = "trace")]
pub mod trace;
pub mod transport;
pub mod watch;
