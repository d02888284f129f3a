//! The short form of what is said by the thousand.
//!
//! postcard tells neither names nor absent fields, so the messages have a form of their own here, in which every field is
//! always there. Its first byte is the number of a variant; JSON begins with `{`.

use std::borrow::Cow;

use bytes::{BufMut as _, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Ask, Message, Tell};
use crate::control::{Dispatch, Grant, Outcome, Release};
use crate::id::{GatewayId, TicketId, WorkerId};
use crate::problem::BoxError;
use crate::transport::Transport;

/// The first byte of JSON, and of no short message.
const JSON: u8 = b'{';

/// What a gateway says often.
#[derive(Debug, Serialize, Deserialize)]
enum BriefAsk<'a> {
    Dispatch { id: u32, dispatch: BriefDispatch<'a> },
    Abandon { id: u32 },
    Release(BriefRelease),
}

/// A [`Dispatch`].
#[derive(Debug, Serialize, Deserialize)]
struct BriefDispatch<'a> {
    gateway: GatewayId,
    request: Option<Cow<'a, str>>,
    model: Cow<'a, str>,
    exact: bool,
    affinity: Option<u64>,
    priority: i8,
    wait_ms: u64,
    deadline_ms: Option<u64>,
    key: Option<Cow<'a, str>>,
    key_priority: i8,
    exclude: Cow<'a, [WorkerId]>,
    transports: Cow<'a, [Transport]>,
    trace: Option<Cow<'a, str>>,
}

/// A [`Release`].
#[derive(Debug, Serialize, Deserialize)]
struct BriefRelease {
    ticket: TicketId,
    outcome: Outcome,
    ttft_ms: Option<u64>,
    tokens: Option<u32>,
}

/// What a controller says often.
#[derive(Debug, Serialize, Deserialize)]
enum BriefTell<'a> {
    Grant { id: u32, grant: BriefGrant<'a> },
}

/// A [`Grant`].
#[derive(Debug, Serialize, Deserialize)]
struct BriefGrant<'a> {
    ticket: TicketId,
    worker: Cow<'a, WorkerId>,
    address: Cow<'a, str>,
    transport: Transport,
    model: Option<Cow<'a, str>>,
}

impl Message for Ask {
    fn write(&self, to: &mut BytesMut) {
        match self {
            Self::Dispatch { id, dispatch } => {
                let dispatch = BriefDispatch {
                    gateway: dispatch.gateway,
                    request: dispatch.request.as_deref().map(Cow::Borrowed),
                    model: dispatch.model.as_str().into(),
                    exact: dispatch.exact,
                    affinity: dispatch.affinity,
                    priority: dispatch.priority,
                    wait_ms: dispatch.wait_ms,
                    deadline_ms: dispatch.deadline_ms,
                    key: dispatch.key.as_deref().map(Cow::Borrowed),
                    key_priority: dispatch.key_priority,
                    exclude: dispatch.exclude.as_slice().into(),
                    transports: dispatch.transports.as_slice().into(),
                    trace: dispatch.trace.as_deref().map(Cow::Borrowed),
                };
                brief(&BriefAsk::Dispatch { id: *id, dispatch }, to);
            }
            Self::Abandon { id } => brief(&BriefAsk::Abandon { id: *id }, to),
            Self::Release(Release { ticket, outcome, ttft_ms, tokens }) => {
                let (ticket, outcome, ttft_ms, tokens) = (*ticket, *outcome, *ttft_ms, *tokens);
                brief(&BriefAsk::Release(BriefRelease { ticket, outcome, ttft_ms, tokens }), to);
            }
            rare @ (Self::Hello { .. } | Self::Sync { .. }) => json(rare, to),
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, BoxError> {
        if bytes.first() == Some(&JSON) {
            return Ok(serde_json::from_slice(bytes)?);
        }
        Ok(match whole(bytes)? {
            BriefAsk::Dispatch { id, dispatch } => {
                let dispatch = Dispatch {
                    gateway: dispatch.gateway,
                    request: dispatch.request.map(Into::into),
                    model: dispatch.model.into(),
                    exact: dispatch.exact,
                    affinity: dispatch.affinity,
                    priority: dispatch.priority,
                    wait_ms: dispatch.wait_ms,
                    deadline_ms: dispatch.deadline_ms,
                    key: dispatch.key.map(Into::into),
                    key_priority: dispatch.key_priority,
                    exclude: dispatch.exclude.into(),
                    transports: dispatch.transports.into(),
                    trace: dispatch.trace.map(Into::into),
                };
                Self::Dispatch { id, dispatch }
            }
            BriefAsk::Abandon { id } => Self::Abandon { id },
            BriefAsk::Release(BriefRelease { ticket, outcome, ttft_ms, tokens }) => {
                Self::Release(Release { ticket, outcome, ttft_ms, tokens })
            }
        })
    }
}

impl Message for Tell {
    fn write(&self, to: &mut BytesMut) {
        match self {
            Self::Grant { id, grant } => {
                let grant = BriefGrant {
                    ticket: grant.ticket,
                    worker: Cow::Borrowed(&grant.worker),
                    address: grant.address.as_str().into(),
                    transport: grant.transport,
                    model: grant.model.as_deref().map(Cow::Borrowed),
                };
                brief(&BriefTell::Grant { id: *id, grant }, to);
            }
            rare @ (Self::Refusal { .. } | Self::Fleet { .. }) => json(rare, to),
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, BoxError> {
        if bytes.first() == Some(&JSON) {
            return Ok(serde_json::from_slice(bytes)?);
        }
        let BriefTell::Grant { id, grant } = whole(bytes)?;
        let grant = Grant {
            ticket: grant.ticket,
            worker: grant.worker.into_owned(),
            address: grant.address.into(),
            transport: grant.transport,
            model: grant.model.map(Into::into),
        };
        Ok(Self::Grant { id, grant })
    }
}

fn brief(message: &impl Serialize, to: &mut BytesMut) {
    postcard::to_io(message, to.writer()).expect("our own types have a short form");
}

fn json(message: &impl Serialize, to: &mut BytesMut) {
    serde_json::to_writer(to.writer(), message).expect("our own types are JSON");
}

/// A message and nothing after it.
fn whole<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, BoxError> {
    match postcard::take_from_bytes(bytes)? {
        (message, []) => Ok(message),
        (_, rest) => Err(format!("{} bytes follow a message", rest.len()).into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Process;
    use super::*;
    use crate::control::Held;
    use crate::problem::{Kind, Problem};

    fn written(message: &impl Message) -> BytesMut {
        let mut bytes = BytesMut::new();
        message.write(&mut bytes);
        bytes
    }

    fn dispatch(model: String, affinity: Option<u64>, priority: i8) -> Dispatch {
        Dispatch {
            gateway: GatewayId::new(),
            request: affinity.map(|_| "a request".to_owned()),
            model,
            exact: priority > 0,
            affinity,
            priority,
            wait_ms: 10_000,
            deadline_ms: affinity.map(|_| 30_000),
            key: affinity.map(|_| "key".to_owned()),
            key_priority: -1,
            exclude: vec![WorkerId::new("http://a"), WorkerId::new("b")],
            transports: vec![Transport::Http, Transport::OpenAi],
            trace: affinity.map(|_| "00-trace-span-01".to_owned()),
        }
    }

    fn process() -> Process {
        Process { id: GatewayId::new(), address: "http://g".to_owned(), version: "1".to_owned() }
    }

    proptest! {
        #[test]
        fn whatever_a_gateway_says_arrives(
            id: u32, model: String, affinity: Option<u64>, priority: i8, ttft_ms: Option<u64>, tokens: Option<u32>,
        ) {
            let ticket = TicketId::new();
            for ask in [
                Ask::Dispatch { id, dispatch: dispatch(model.clone(), affinity, priority) },
                Ask::Abandon { id },
                Ask::Release(Release { ticket, outcome: Outcome::Overloaded, ttft_ms, tokens }),
                Ask::Hello { gateway: GatewayId::new(), process: process(), held: vec![Held { ticket, worker: WorkerId::new("w"), model, key: None }] },
                Ask::Sync { claims: vec![] },
            ] {
                prop_assert_eq!(Ask::read(&written(&ask)).expect("a message"), ask);
            }
        }

        #[test]
        fn whatever_a_controller_says_arrives(id: u32, address: String, model: Option<String>) {
            let (ticket, worker) = (TicketId::new(), WorkerId::new("w"));
            for tell in [
                Tell::Grant { id, grant: Grant { ticket, worker, address, transport: Transport::Grpc, model } },
                Tell::Refusal { id, problem: Problem::new(Kind::Overloaded, "full").with_retry_after_ms(7) },
            ] {
                prop_assert_eq!(Tell::read(&written(&tell)).expect("a message"), tell);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = (Ask::read(&bytes), Tell::read(&bytes));
        }
    }

    #[test]
    fn the_short_form_is_short_and_stands_alone() {
        let mut bytes = written(&Ask::Dispatch { id: 1, dispatch: dispatch("model".to_owned(), None, 0) });
        assert!(bytes.len() < 80, "{}", bytes.len());
        bytes.put_u8(0);
        assert!(Ask::read(&bytes).is_err(), "a byte too many");
    }
}
