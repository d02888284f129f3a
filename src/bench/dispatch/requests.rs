//! Requests to a controller as they go over the wire, made before anything is measured.

use std::io::Write as _;

use muster_shared::control::{Dispatch, Heartbeat, ModelLoad};
use muster_shared::fastchat::{HeartBeat, ModelQuery, RegisterWorker, WorkerStatus};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use serde::{Deserialize, Serialize};

use super::offline::IN_FLIGHT;
use crate::bench::standins::{MODEL, StandIns};

/// Most requests in flight on a worker: more than there ever are, so that no fleet of any size is full.
const ROOM: u32 = 1 << 20;

/// In whose words workers register and beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    Native,
    FastChat,
}

/// Who is asked.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    /// HOST:PORT.
    pub(super) host: String,
    /// What paths begin with.
    pub(super) base: String,
}

impl Writer {
    /// How the worker of that number registers. FastChat's controller is told the worker's state, so that it does not
    /// ask for it.
    pub(super) fn registration(&self, words: Words, standins: &StandIns, number: u32) -> Vec<u8> {
        match words {
            Words::Native => self.post("/register", &standins.registration(number, ROOM)),
            Words::FastChat => {
                let status = WorkerStatus { model_names: vec![MODEL.to_owned()], speed: 1.0, queue_length: 0 };
                let worker_name = standins.url(number);
                let body = RegisterWorker {
                    worker_name,
                    check_heart_beat: true,
                    worker_status: Some(status),
                    multimodal: false,
                };
                self.post("/register_worker", &body)
            }
        }
    }

    /// A heartbeat that tells of as many requests as are in flight on each worker; those that were looked up have ended.
    pub(super) fn heartbeat(&self, words: Words, standins: &StandIns, number: u32) -> Vec<u8> {
        let worker = standins.url(number);
        match words {
            Words::Native => {
                let beat = Heartbeat::bare(WorkerId::new(worker), 1);
                let load = ModelLoad { model: MODEL.to_owned(), running: IN_FLIGHT, waiting: 0 };
                self.post("/heartbeat", &Heartbeat { load: Some(vec![load]), ..beat })
            }
            Words::FastChat => self.post("/receive_heart_beat", &HeartBeat { worker_name: worker, queue_length: 0 }),
        }
    }

    pub(super) fn lookup(&self) -> Vec<u8> {
        self.post("/get_worker_address", &ModelQuery { model: MODEL.to_owned() })
    }

    pub(super) fn dispatch(&self, gateway: GatewayId) -> Vec<u8> {
        self.post("/dispatch", &Dispatch::new(gateway, MODEL))
    }

    /// Ends a request, in a buffer that is used again.
    pub(super) fn release(&self, gateway: GatewayId, ticket: TicketId, into: &mut Vec<u8>) {
        into.clear();
        let body = format!(r#"{{"gateway":"{gateway}","releases":[{{"ticket":"{ticket}","outcome":"done"}}]}}"#);
        self.write("/release", body.as_bytes(), into);
    }

    fn post(&self, path: &str, body: &impl Serialize) -> Vec<u8> {
        let (body, mut request) = (serde_json::to_vec(body).expect("our own types are JSON"), Vec::new());
        self.write(path, &body, &mut request);
        request
    }

    fn write(&self, path: &str, body: &[u8], into: &mut Vec<u8>) {
        let (Self { host, base }, length) = (self, body.len());
        // To memory, which cannot fail.
        let _ = write!(
            into,
            "POST {base}{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n"
        );
        into.extend_from_slice(body);
    }
}

/// What is read of a grant.
#[derive(Debug, Deserialize)]
pub(super) struct Granted {
    pub(super) ticket: TicketId,
}

#[cfg(test)]
mod tests {
    use muster_shared::control::{Outcome, Releases};

    use super::*;

    #[test]
    fn a_release_is_what_the_controller_reads() {
        let writer = Writer { host: "h:1".to_owned(), base: "/b".to_owned() };
        let (gateway, ticket, mut request) = (GatewayId::new(), TicketId::new(), b"before".to_vec());
        writer.release(gateway, ticket, &mut request);
        let text = String::from_utf8(request).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("POST /b/release HTTP/1.1\r\n"), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        let releases: Releases = serde_json::from_str(body).expect("releases");
        assert_eq!((releases.gateway, releases.releases.len()), (gateway, 1));
        assert_eq!((releases.releases[0].ticket, releases.releases[0].outcome), (ticket, Outcome::Done));
    }
}
