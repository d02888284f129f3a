use proptest::prelude::*;

use super::*;

fn filter(stops: &[&str]) -> StopFilter {
    StopFilter::new(stops.iter().map(|stop| (*stop).to_owned()).collect())
}

fn more(text: &str) -> Filtered {
    Filtered { text: text.to_owned(), stopped: false }
}

fn last(text: &str) -> Filtered {
    Filtered { text: text.to_owned(), stopped: true }
}

#[test]
fn text_without_stop_strings_passes_at_once() {
    for stops in [&[][..], &[""], &["xyz"]] {
        let mut filter = filter(stops);
        assert_eq!(filter.push("hello"), more("hello"));
        assert_eq!(filter.finish(), "");
    }
}

#[test]
fn a_stop_string_over_several_pieces_is_never_shown() {
    let mut filter = filter(&["\nUser:"]);
    assert_eq!(filter.push("Hi.\nUs"), more("Hi."));
    assert_eq!(filter.push("er"), more(""));
    assert_eq!(filter.push(": more"), last(""));
    assert_eq!(filter.push("more"), last(""));
    assert_eq!(filter.finish(), "");
}

#[test]
fn what_did_not_become_a_stop_string_is_shown_as_soon_as_that_is_known() {
    let mut filter = filter(&["aab"]);
    assert_eq!(filter.push("xa"), more("x"));
    assert_eq!(filter.push("a"), more(""));
    assert_eq!(filter.push("a"), more("a")); // "aa" may still become "aab"
    assert_eq!(filter.push("c"), more("aac"));
}

#[test]
fn what_is_held_at_the_end_is_shown() {
    let mut filter = filter(&["END"]);
    assert_eq!(filter.push("the EN"), more("the "));
    assert_eq!(filter.finish(), "EN");
    assert_eq!(filter.finish(), "");
}

#[test]
fn the_stop_string_that_is_complete_first_wins() {
    // However the text is cut: "abcd" begins earlier, but "bc" is there while it is still unfinished.
    assert_eq!(filter(&["abcd", "bc"]).push("xabcd"), last("xa"));
    // Complete at the same place: the longer.
    assert_eq!(filter(&["b", "ab"]).push("xab"), last("x"));
    assert_eq!(filter(&["ab", "b"]).push("xab"), last("x"));
}

#[test]
fn characters_of_several_bytes_stay_whole() {
    let mut filter = filter(&["世!"]);
    // The same first two bytes as 世, then another third: never split.
    assert_eq!(filter.push("丗"), more("丗"));
    assert_eq!(filter.push("世"), more(""));
    assert_eq!(filter.push("界"), more("世界"));
    assert_eq!(filter.push("世!"), last(""));
}

#[test]
fn ten_thousand_stop_strings_are_no_burden() {
    let stops: Vec<String> = (0..10_000).map(|n| format!("{}{n}", "a".repeat(50))).collect();
    let mut filter = StopFilter::new(stops);
    let text = "a".repeat(100_000) + "b";
    // Quadratic work, or one search for each string, would show as minutes here.
    let shown: String =
        text.as_bytes().chunks(7).map(|piece| filter.push(std::str::from_utf8(piece).unwrap()).text).collect();
    assert_eq!(shown, text);
}

/// Looks at every end of the text, character by character: where the first stop string is complete, the longest counts.
fn reference(stops: &[String], text: &str) -> Option<usize> {
    let ends = text.char_indices().map(|(at, character)| at + character.len_utf8());
    ends.filter_map(|end| {
        let here = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
        here.map(|stop| end - stop.len()).min()
    })
    .next()
}

/// How much of a text must be held back: its longest end that is the beginning of a stop string.
fn undecided(stops: &[String], text: &str) -> usize {
    let begins = |end: &str| stops.iter().any(|stop| stop.len() > end.len() && stop.starts_with(end));
    text.char_indices().map(|(at, _)| &text[at..]).find(|end| begins(end)).map_or(0, str::len)
}

proptest! {
    #[test]
    fn text_in_any_pieces_is_filtered_as_a_whole_and_never_late(
        stops in prop::collection::vec("[abé世]{0,4}", 0..5),
        pieces in prop::collection::vec("[abé世]{0,5}", 0..10),
    ) {
        let mut filter = StopFilter::new(stops.clone());
        let (mut seen, mut shown) = (String::new(), String::new());
        for piece in &pieces {
            seen.push_str(piece);
            let filtered = filter.push(piece);
            shown.push_str(&filtered.text);
            let stop = reference(&stops, &seen);
            prop_assert_eq!(filtered.stopped, stop.is_some());
            let right = stop.unwrap_or_else(|| seen.len() - undecided(&stops, &seen));
            prop_assert_eq!(&shown, &seen[..right]);
        }
        shown.push_str(&filter.finish());
        prop_assert_eq!(&shown, &seen[..reference(&stops, &seen).unwrap_or(seen.len())]);
    }
}
