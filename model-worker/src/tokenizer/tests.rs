use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn demo(model: &str) -> Tokenizer {
    let path = format!("{}/demo/{model}/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
    Tokenizer::from_json(&std::fs::read(path).unwrap()).unwrap()
}

/// A vocabulary as Llama 2 has it: `▁` for a space, a token for every byte, and a few words.
fn spelled() -> Tokenizer {
    let mut vocab = json!({ "<unk>": 0, "<s>": 1, "</s>": 2 });
    for byte in 0..=255_u16 {
        vocab[format!("<0x{byte:02X}>")] = json!(byte + 3);
    }
    for (index, piece) in ["▁", "a", "b", "▁a", "▁b", "é", "▁世", "界"].iter().enumerate() {
        vocab[*piece] = json!(index + 259);
    }
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ]},
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ]},
        "model": { "type": "BPE", "vocab": vocab, "merges": ["▁ a", "▁ b"], "unk_token": "<unk>",
            "byte_fallback": true, "fuse_unk": true },
    });
    Tokenizer::from_json(tokenizer.to_string().as_bytes()).unwrap()
}

fn special(id: u32, content: &str) -> Value {
    json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false })
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text.push_str(&stream.finish());
    text
}

fn whole(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizer.0.tokenizer.decode(ids, true).unwrap()
}

#[test]
fn padding_and_truncation_in_the_file_are_switched_off() {
    let tokenizer = demo("embedding"); // its file says: cut at 128, fill to 128
    assert_eq!(tokenizer.encode("hello", true).unwrap().len(), 3);
    assert_eq!(tokenizer.encode(&"hello ".repeat(300), false).unwrap().len(), 300);
}

#[test]
fn special_tokens_are_added_only_where_asked_for() {
    let tokenizer = demo("embedding");
    let (cls, sep) = (tokenizer.id_of("[CLS]").unwrap(), tokenizer.id_of("[SEP]").unwrap());
    let bare = tokenizer.encode("hello", false).unwrap();
    assert_eq!(tokenizer.encode("hello", true).unwrap(), [vec![cls], bare, vec![sep]].concat());
    assert!(tokenizer.is_special(cls) && !tokenizer.is_special(tokenizer.vocab_size() - 1));
    assert!(!tokenizer.is_special(u32::MAX));
}

#[test]
fn the_vocabulary_ends_after_the_highest_id() {
    let tokenizer = demo("chat");
    let last = tokenizer.vocab_size() - 1;
    assert!(tokenizer.0.tokenizer.id_to_token(last).is_some());
    assert!(tokenizer.0.tokenizer.id_to_token(last + 1).is_none());
    assert_eq!(tokenizer.id_of("no such token"), None);
}

#[test]
fn a_vocabulary_has_the_same_name_wherever_it_is_loaded_and_no_other_has_it() {
    let name = demo("chat").fingerprint().to_owned();
    assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    assert_eq!(demo("chat").fingerprint(), name);
    assert_ne!(demo("embedding").fingerprint(), name);
}

#[test]
fn a_file_that_is_no_tokenizer_is_refused() {
    assert!(matches!(Tokenizer::from_json(b"{}"), Err(TokenizerError::Read(_))));
    assert!(matches!(Tokenizer::from_json(b"\xFF"), Err(TokenizerError::Read(_))));
}

#[test]
fn byte_level_tokens_know_their_bytes() {
    let tokenizer = demo("chat");
    let ids = tokenizer.encode(" 世", false).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap()).collect();
    assert_eq!(bytes, " 世".as_bytes());
    let end = tokenizer.id_of("<|im_end|>").unwrap();
    assert_eq!(tokenizer.token_text(end), "<|im_end|>");
    assert_eq!(tokenizer.token_bytes(end).unwrap(), b"<|im_end|>");
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
    assert_eq!(tokenizer.token_text(u32::MAX), "");
}

#[test]
fn characters_stand_for_bytes_by_gpt2s_table() {
    // From bytes_to_unicode() of GPT-2's encoder.py.
    for (text, bytes) in [("Ġ", b" "), ("Ċ", b"\n"), ("Ā", b"\0"), ("Ń", b"\xAD"), ("ł", b"\xA0"), ("ÿ", b"\xFF")]
    {
        assert_eq!(Pieces::ByteLevel.bytes(text).unwrap(), bytes);
    }
}

#[test]
fn spelled_tokens_know_their_bytes() {
    let tokenizer = spelled();
    assert_eq!(tokenizer.token_bytes(3 + 0xAB).unwrap(), [0xAB]);
    assert_eq!(tokenizer.token_text(3 + 0xAB), "\u{FFFD}");
    assert_eq!(tokenizer.token_text(tokenizer.id_of("▁a").unwrap()), " a");
}

#[test]
fn wordpiece_tokens_have_text_but_no_bytes_of_their_own() {
    let tokenizer = demo("embedding");
    let id = tokenizer.encode("hello", false).unwrap()[0];
    assert_eq!(tokenizer.token_text(id), "hello");
    assert_eq!(tokenizer.token_bytes(id), None);
}

#[test]
fn a_character_waits_for_its_last_byte() {
    let tokenizer = spelled();
    let mut stream = tokenizer.stream();
    let crab: Vec<String> = "🦀".bytes().map(|byte| stream.push(u32::from(byte) + 3)).collect();
    assert_eq!(crab, ["", "", "", "🦀"]);
}

#[test]
fn an_unfinished_character_becomes_one_replacement_character_at_the_end() {
    let tokenizer = spelled();
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(0xF0 + 3), "");
    assert_eq!(stream.push(0x9F + 3), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
    assert_eq!(stream.finish(), "");
}

#[test]
fn the_first_space_is_dropped_only_where_the_text_begins() {
    let tokenizer = spelled();
    let ids = tokenizer.encode("a b", false).unwrap();
    assert_eq!(streamed(&tokenizer, &ids), "a b");
    let mut stream = tokenizer.stream();
    stream.start_after(&[1, ids[0]]);
    assert_eq!(stream.push(ids[0]), " a");
    let mut stream = tokenizer.stream();
    stream.start_after(&[1]); // a control token is no text
    assert_eq!(stream.push(ids[0]), "a");
}

#[test]
fn wordpiece_text_joins_on_to_its_context() {
    let tokenizer = demo("embedding");
    let ids = tokenizer.encode("hello world, again", false).unwrap();
    let mut stream = tokenizer.stream();
    stream.start_after(&ids[..1]);
    let pieces: Vec<String> = ids[1..].iter().map(|id| stream.push(*id)).collect();
    assert_eq!(pieces, [" world", ",", " again"]);
}

#[test]
fn a_context_may_end_inside_a_character() {
    for tokenizer in [spelled(), demo("chat")] {
        let ids = tokenizer.encode("a🦀b", false).unwrap();
        for cut in 1..ids.len() {
            let mut before = tokenizer.stream();
            let shown: String = ids[..cut].iter().map(|id| before.push(*id)).collect();
            let mut after = tokenizer.stream();
            after.start_after(&ids[..cut]);
            let rest: String = ids[cut..].iter().map(|id| after.push(*id)).collect();
            assert_eq!(shown + &rest, "a🦀b", "cut at {cut}");
        }
    }
}

#[test]
fn decoders_of_known_model_families_are_recognised() {
    let spelled = |byte_fallback, strip_first_space| Pieces::Spelled {
        replace: vec![("▁".to_owned(), " ".to_owned())],
        byte_fallback,
        strip_first_space,
    };
    let replace = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
    let gemma = json!({ "type": "Sequence", "decoders": [replace, { "type": "ByteFallback" }, { "type": "Fuse" }] });
    assert_eq!(Pieces::of(&gemma), spelled(true, false));
    let odd = json!({ "type": "Sequence", "decoders": [{ "type": "Fuse" }, replace] });
    assert_eq!(Pieces::of(&odd), Pieces::Unknown);
    let one = json!({ "type": "Sequence", "decoders": [{ "type": "ByteLevel" }] });
    assert_eq!(Pieces::of(&one), Pieces::ByteLevel);
    assert_eq!(Pieces::of(&Value::Null), Pieces::Unknown);
}

/// Texts with what breaks naive decoders: emoji with joiners, CJK, combining marks, control characters.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z ]{0,8}",
        "\\PC{0,4}",
        any::<char>().prop_map(String::from),
        prop::sample::select(vec!["👩‍👩‍👧‍👦", "🇫🇷", "世界", "한국", "e\u{301}", "\u{FFFD}", "\n\n", "ﷺ", "<tool_call>"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// The first tokens are special, then come single bytes, then words: all three often.
fn ids() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![0..270_u32, 0..4000_u32], 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn decoding_random_tokens_in_pieces_equals_decoding_them_whole(ids in ids()) {
        for tokenizer in [&*CHAT, &*EMBEDDING] {
            prop_assert_eq!(streamed(tokenizer, &ids), whole(tokenizer, &ids));
        }
    }

    #[test]
    fn decoding_text_in_pieces_equals_decoding_it_whole(text in text()) {
        for tokenizer in [&*CHAT, &*EMBEDDING, &*SPELLED] {
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(streamed(tokenizer, &ids), whole(tokenizer, &ids));
        }
        prop_assert_eq!(streamed(&CHAT, &CHAT.encode(&text, false).unwrap()), text.clone());
        prop_assert_eq!(streamed(&SPELLED, &SPELLED.encode(&text, false).unwrap()), text);
    }

    #[test]
    fn a_window_gives_the_same_text_as_known_bytes(text in text()) {
        // The one thing that a window cannot tell from an unfinished character.
        let text = text.replace('\u{FFFD}', "?");
        for tokenizer in [&*CHAT, &*SPELLED] {
            let ids = tokenizer.encode(&text, false).unwrap();
            let mut stream = tokenizer.stream();
            stream.decoding = Decoding::Window(Window::default());
            let mut pieces: String = ids.iter().map(|id| stream.push(*id)).collect();
            pieces.push_str(&stream.finish());
            prop_assert_eq!(pieces, text.clone());
        }
    }

    #[test]
    fn bytes_cut_anywhere_give_the_text_of_the_whole(bytes in any::<Vec<u8>>(), cuts in any::<Vec<prop::sample::Index>>()) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let (mut pending, mut text) = (Vec::new(), String::new());
        for pair in cuts.windows(2) {
            pending.extend_from_slice(&bytes[pair[0]..pair[1]]);
            text.push_str(&take_whole_text(&mut pending));
        }
        text.push_str(&String::from_utf8_lossy(&pending));
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
}

static CHAT: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(|| demo("chat"));
static EMBEDDING: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(|| demo("embedding"));
static SPELLED: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(spelled);
