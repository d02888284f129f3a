//! What is read of peers files, and what is said of wrong ones.

use muster_shared::control::{Capabilities, Capacity, Gpu, ModelCard, ModelKind};
use muster_shared::transport::Transport;
use proptest::prelude::*;

use super::*;

/// Wrong files with all that is said of each.
const MISTAKES: &str = include_str!("tests/mistakes.txt");
/// Between a file and what is said of it.
const CUT: &str = "---8<---\n";

fn read(text: &str) -> Vec<Peer> {
    parse("peers.yaml", text, None).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_mistake_is_told_with_its_place_and_its_line() {
    let own = "127.0.0.1:21001".parse().expect("an address");
    let cases: Vec<&str> = MISTAKES.split("=== ").skip(1).collect();
    assert!(cases.len() > 20, "the cases are read");
    for case in cases {
        let (name, rest) = case.split_once('\n').expect("a name");
        let (text, said) = rest.split_once(CUT).expect("a file, and what is said of it");
        let error = parse("peers.yaml", text, Some(own)).expect_err(name);
        assert_eq!(error.to_string(), said.trim_end_matches('\n'), "{name}");
    }
}

#[test]
fn the_basic_case_is_read() {
    let peers = read(
        "peers:\n  - id: bench-1\n    address: \"10.0.0.7:21002\"\n    capabilities: {memory_gb: 64, gpu: true}\n  \
           - id: bench-2\n    address: 10.0.0.8:21002\n    capabilities:\n      memory_gb: 31.5\n      gpu: false\n",
    );
    let told = |peer: &Peer| (peer.id.as_str().to_owned(), peer.address.clone(), peer.capabilities.clone());
    let has = |memory_gb, gpu| {
        Some(Capabilities { memory_gb: Some(memory_gb), gpu: Some(Gpu::Any(gpu)), ..Capabilities::default() })
    };
    assert_eq!(told(&peers[0]), ("bench-1".to_owned(), "http://10.0.0.7:21002".to_owned(), has(64.0, true)));
    assert_eq!(told(&peers[1]), ("bench-2".to_owned(), "http://10.0.0.8:21002".to_owned(), has(31.5, false)));
}

#[test]
fn everything_that_can_be_said_is_read() {
    let text = "
peers:
  - id: \"bench 1\"   # with a comment
    address: http://w.example/base/
    transport: openai
    models:
      - smollm2
      - {name: other, kind: embed, context_length: 2048, capacity: {running: 4, waiting: 8}}
    site: factory-2
    speed: 1.5
    capabilities: {cpus: 16, memory_gb: 64, gpu: NVIDIA L4, gpu_memory_gb: 24}
";
    let peer = read(text).remove(0);
    assert_eq!((peer.address.as_str(), peer.transport), ("http://w.example/base", Transport::OpenAi));
    assert_eq!((peer.site.as_deref(), peer.speed), (Some("factory-2"), Some(1.5)));
    assert_eq!(peer.models[0], ModelCard::bare("smollm2"));
    let other = &peer.models[1];
    let capacity = Some(Capacity { running: 4, waiting: 8 });
    assert_eq!((other.kind, other.context_length, other.capacity), (Some(ModelKind::Embed), Some(2048), capacity));
    assert_eq!(
        peer.capabilities,
        Some(Capabilities {
            cpus: Some(16),
            memory_gb: Some(64.0),
            gpu: Some(Gpu::Named("NVIDIA L4".to_owned())),
            gpu_memory_gb: Some(24.0)
        })
    );
}

#[test]
fn json_is_read_and_an_empty_list_is_one() {
    assert_eq!(read(r#"{"peers": [{"id": "a", "address": "[::1]:1"}]}"#).len(), 1);
    assert_eq!(read("peers: []\n"), []);
}

#[test]
fn what_is_taken_is_told_whatever_else_is_wrong_with_a_peer() {
    let text = "peers:\n- {id: a, address: b:1}\n- {id: a, address: b:70000}\n- {id: \"\", address: b:1}\n";
    let error = parse("f", text, None).expect_err("two that are like the first").to_string();
    for said in [
        "f:3:8: the id `a` is that of the peer in line 2",
        "f:3:20: port 70000",
        "f:4:8: the id is empty",
        "f:4:21: the address http://b:1 is that of the peer in line 2",
    ] {
        assert!(error.contains(said), "no `{said}` in\n{error}");
    }
}

#[test]
fn only_so_many_mistakes_are_shown_at_once() {
    let text = format!("peers:\n{}", "  - {}\n".repeat(30));
    let error = parse("peers.yaml", &text, None).expect_err("nobody has an id").to_string();
    assert_eq!(error.lines().count(), 20 * 3 + 1);
    assert!(error.ends_with("peers.yaml: and 40 more mistakes"), "{error}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*|[\\x00-\\x7f]{0,80}|(peers:|- |id: |[&*!|>{}\\[\\],:#'\"\\n \\t]|a|7){0,40}") {
        let _ = parse("f", &text, None).map_err(|error| error.to_string());
    }

    #[test]
    fn no_value_of_a_peer_makes_it_panic(
        key in "id|address|transport|models|site|speed|capabilities|gpu",
        value in "\\PC{0,20}|[0-9:.\\[\\]{}a-f/-]{0,20}",
    ) {
        let text = format!("peers:\n- id: a\n  address: b:1\n  {key}: {value}\n- {{{key}: {value}}}\n");
        let _ = parse("f", &text, "0.0.0.0:1".parse().ok()).map_err(|error| error.to_string());
    }
}
