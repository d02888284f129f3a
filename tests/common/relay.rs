//! A relay between a gateway and a worker that breaks answers off where a test says, as the death of the worker would.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Names of requests that have a plan begin and end so, that they are found in a body of whatever form.
const NAME: (&str, char) = ("relay:", ';');
/// Bytes of an event that pass when it is cut through.
const PIECE: usize = 10;

/// What the worker speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Server-sent events over HTTP/1.1; one request at a time on a connection.
    Http,
    /// gRPC. All requests of a gateway share a connection, and its end breaks all of them off.
    Grpc,
}

/// Where an answer breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Right after so many events, as when a process ends: what it has written still arrives.
    After(usize),
    /// In the midst of the event after so many, by a reset.
    Within(usize),
}

/// What becomes of the answers to the requests with certain names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plans(Arc<Mutex<HashMap<String, Plan>>>);

#[derive(Debug, Default)]
struct Plan {
    cuts: VecDeque<Cut>,
    /// Bodies of the requests that came, where they are JSON.
    asked: Vec<Value>,
}

impl Plans {
    /// Breaks off the answers to a request, one attempt after another; gives the request's name. Further attempts go
    /// through.
    pub(crate) fn make(&self, about: &str, cuts: &[Cut]) -> String {
        let name = format!("{}{about}{}", NAME.0, NAME.1);
        let plan = Plan { cuts: cuts.iter().copied().collect(), asked: Vec::new() };
        assert!(self.lock().insert(name.clone(), plan).is_none(), "{name} has a plan");
        name
    }

    /// The bodies of the attempts of a request.
    pub(crate) fn asked(&self, name: &str) -> Vec<Value> {
        self.lock()[name].asked.clone()
    }

    fn next(&self, name: &str, body: Option<Value>) -> Option<Cut> {
        let mut plans = self.lock();
        let plan = plans.get_mut(name)?;
        plan.asked.extend(body);
        plan.cuts.pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Plan>> {
        self.0.lock().expect("no panic while holding it")
    }
}

/// Starts a relay to a worker; it runs as long as the test. Gives its address.
pub(crate) async fn start(worker: &str, wire: Wire, plans: &Plans) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let worker = worker.trim_start_matches("http://").to_owned();
    let plans = plans.clone();
    tokio::spawn(async move {
        while let Ok((gateway, _)) = listener.accept().await {
            let (worker, plans) = (worker.clone(), plans.clone());
            // Either side may leave at any time: then the other connection is closed as well.
            tokio::spawn(async move { relay(gateway, &worker, wire, &plans).await });
        }
    });
    address
}

async fn relay(mut gateway: TcpStream, worker: &str, wire: Wire, plans: &Plans) -> io::Result<()> {
    let mut worker = TcpStream::connect(worker).await?;
    for stream in [&gateway, &worker] {
        stream.set_nodelay(true)?;
    }
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let (mut asked, mut meter) = (Vec::new(), Meter::new(wire));
    loop {
        tokio::select! {
            read = gateway.read(&mut up) => {
                let bytes = &up[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                asked.extend_from_slice(bytes);
                if let Some((name, body)) = take_request(&mut asked, wire) {
                    meter.arm(plans.next(&name, body));
                }
                worker.write_all(bytes).await?;
            }
            read = worker.read(&mut down) => {
                let bytes = &down[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                let Some((length, cut)) = meter.pass(bytes) else {
                    gateway.write_all(bytes).await?;
                    continue;
                };
                gateway.write_all(&bytes[..length]).await?;
                if matches!(cut, Cut::Within(_)) {
                    gateway.set_zero_linger()?;
                }
                return Ok(());
            }
        }
    }
}

/// A request with a plan that has come whole: its name, and its body where that is JSON.
fn take_request(bytes: &mut Vec<u8>, wire: Wire) -> Option<(String, Option<Value>)> {
    let found = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let from = text.find(NAME.0)?;
        let to = from + text[from..].find(NAME.1)?;
        Some(text[from..=to].to_owned())
    };
    if wire == Wire::Grpc {
        let name = found(bytes)?;
        bytes.clear();
        return Some((name, None));
    }
    let body = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..body]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    let request = bytes.get(body..body + length)?.to_vec();
    bytes.drain(..body + length);
    Some((found(&request)?, serde_json::from_slice(&request).ok()))
}

/// Counts the events of an answer as they pass.
struct Meter {
    wire: Wire,
    cut: Option<Cut>,
    events: usize,
    /// Bytes of the event that passes; with HTTP, from its first brace on.
    inside: usize,
    /// The last byte, of which HTTP's events need two to end.
    last: u8,
    frame: Frame,
}

/// A frame of HTTP/2 that passes: nine bytes, of which three are the length and one is the type, and the payload.
#[derive(Default)]
struct Frame {
    head: Vec<u8>,
    left: usize,
}

impl Meter {
    fn new(wire: Wire) -> Self {
        Self { wire, cut: None, events: 0, inside: 0, last: 0, frame: Frame::default() }
    }

    fn arm(&mut self, cut: Option<Cut>) {
        (self.cut, self.events, self.inside) = (cut, 0, 0);
    }

    /// How many of the bytes pass before the connection ends; nothing where it goes on.
    fn pass(&mut self, bytes: &[u8]) -> Option<(usize, Cut)> {
        bytes.iter().enumerate().find_map(|(at, &byte)| {
            let cut = self.cut.filter(|cut| self.is_reached(*cut));
            match self.wire {
                Wire::Http => self.pass_text(byte),
                Wire::Grpc => self.pass_frame(byte),
            }
            Some((at, cut?))
        })
    }

    fn is_reached(&self, cut: Cut) -> bool {
        match cut {
            Cut::After(events) => self.events == events,
            Cut::Within(events) => self.events == events && self.inside >= PIECE,
        }
    }

    fn pass_text(&mut self, byte: u8) {
        if self.inside > 0 || byte == b'{' {
            self.inside += 1;
        }
        if (self.last, byte) == (b'\n', b'\n') {
            (self.events, self.inside) = (self.events + 1, 0);
        }
        self.last = byte;
    }

    /// A message is a frame of data, as our workers write them.
    fn pass_frame(&mut self, byte: u8) {
        let frame = &mut self.frame;
        if frame.left == 0 {
            frame.head.push(byte);
            if let &[a, b, c, _, _, _, _, _, _] = &frame.head[..] {
                frame.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                if frame.left == 0 {
                    frame.head.clear();
                }
            }
            return;
        }
        frame.left -= 1;
        let is_data = frame.head[3] == 0;
        self.inside += usize::from(is_data);
        if frame.left == 0 {
            frame.head.clear();
            if is_data {
                (self.events, self.inside) = (self.events + 1, 0);
            }
        }
    }
}
