//! What a door of TLS says to those who speak older versions, no TLS, or nothing.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::authority::{Authority, HERE};
use super::common::{PATIENCE, Process};

/// Records of TLS by their first byte.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
/// Alerts.
const HANDSHAKE_FAILURE: u8 = 40;
const PROTOCOL_VERSION: u8 = 70;

/// The first words of a client that offers a version and suites.
fn hello(version: [u8; 2], suites: &[u16]) -> Vec<u8> {
    let groups = [0x00, 0x0a, 0x00, 0x06, 0x00, 0x04, 0x00, 0x1d, 0x00, 0x17]; // X25519, P-256
    let signatures = [0x00, 0x0d, 0x00, 0x06, 0x00, 0x04, 0x04, 0x03, 0x08, 0x04]; // ECDSA, RSA-PSS
    let points = [0x00, 0x0b, 0x00, 0x02, 0x01, 0x00];
    let extensions = [&groups[..], &signatures, &points].concat();
    let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).expect("it is short").to_be_bytes();
    let body =
        [&version[..], &[7; 32], &[0], &length(&suites), &suites, &[1, 0], &length(&extensions), &extensions].concat();
    let message = [&[1, 0], &length(&body)[..], &body].concat();
    [&[HANDSHAKE, 3, 1][..], &length(&message), &message].concat()
}

/// All that is answered.
async fn answer(address: &str, bytes: &[u8], is_enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let address = address.split_once("://").expect("a URL").1;
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(bytes).await.expect("it is taken");
    let mut came = Vec::new();
    while !is_enough(&came) {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut came)).await.expect("it answers or closes");
        if read.unwrap_or(0) == 0 {
            break;
        }
    }
    came
}

fn service(service: &[&str]) -> (Authority, Process) {
    let ours = Authority::new("ours");
    ours.make("service", &HERE);
    let flags = ours.open_flags("service");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let process = Process::start(&[service, &["--port", "0"], &flags].concat());
    (ours, process)
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_and_old_suites_are_refused() {
    // RSA key exchange, CBC, 3DES, RC4, and ECDHE with CBC.
    let old = [0x002f, 0x003c, 0x009c, 0x000a, 0x0005, 0xc009, 0xc013, 0xc023];
    let good = [0xc02b, 0xc02f];
    let (_ours, gateway) = service(&["gateway", "--grpc-port", "0"]);
    let (_others, controller) = service(&["controller"]);
    for address in [&gateway.address, &gateway.grpc_address().await, &controller.address] {
        for (version, suites, right) in [
            ([3, 0], &good[..], [ALERT, PROTOCOL_VERSION]),
            ([3, 1], &good, [ALERT, PROTOCOL_VERSION]),
            ([3, 2], &good, [ALERT, PROTOCOL_VERSION]),
            ([3, 3], &old, [ALERT, HANDSHAKE_FAILURE]),
        ] {
            let came = answer(address, &hello(version, suites), |came| came.len() >= 7).await;
            assert_eq!([came[0], came[6]], right, "{address} {version:?} {suites:04x?}: {came:?}");
        }
        // The control: with a modern suite the same words are answered.
        let came = answer(address, &hello([3, 3], &good), |came| came.len() >= 11).await;
        assert_eq!((came[0], &came[9..11]), (HANDSHAKE, &[3, 3][..]), "{came:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_speaks_no_tls_is_told_so_in_plain_words() {
    let (_ours, gateway) = service(&["gateway", "--grpc-port", "0"]);
    for address in [&gateway.address, &gateway.grpc_address().await] {
        let came = answer(address, b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n", |_| false).await;
        let came = String::from_utf8(came).expect("text");
        assert!(came.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{came}");
        assert!(came.ends_with("\r\n\r\nthis port speaks https; write https:// in the address, instead of http://\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_does_not_go_on_is_left_in_time_and_holds_up_nobody() {
    let (ours, gateway) = service(&["gateway", "--grpc-port", "0"]);
    let client = muster_shared::client::fleet_client(&ours.client(None), Default::default());
    let (http, grpc) = (gateway.address.clone(), gateway.grpc_address().await);
    let begin = Instant::now();
    let mut silent = Vec::new();
    for address in [&http, &grpc] {
        for words in [&b""[..], &hello([3, 3], &[0xc02b])[..40]] {
            for _ in 0..50 {
                let mut stream = TcpStream::connect(&address["https://".len()..]).await.expect("a connection");
                stream.write_all(words).await.expect("it is taken");
                silent.push(stream);
            }
        }
    }
    let answered = client.get(format!("{http}/health")).send().await.expect("an answer").status();
    assert!(answered.is_success() && begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    for mut stream in silent {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "it is closed");
    }
    assert!(begin.elapsed() >= Duration::from_secs(9), "they had their time: {:?}", begin.elapsed());
}
