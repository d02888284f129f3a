use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn numbers_are_read_back_to_the_last_bit(bits in any::<u64>(), cpu in 0.0..1.0_f64, response in 0.0..1e9_f64) {
        let speed = f64::from_bits(bits);
        prop_assume!(speed.is_finite());
        let resources = Resources { cpu: Some(cpu), ..Resources::default() };
        let machine = Machine { worker: WorkerId::new("w"), speed, capacity: None, resources };
        let busy = Busy { load: 1, given: 2, turn: 3, response_ms: Some(response) };
        let change = Change {
            transport: Transport::Http,
            place: 1,
            gone: false,
            live: true,
            spared: false,
            open: false,
            busy: Some(busy),
            machine: Some(machine),
        };
        let line = Line::Pool(Pool { pool: 1, model: "m".to_owned(), policy: "lottery".to_owned(), seats: vec![change] });
        let text = serde_json::to_string(&line).expect("it is JSON");
        prop_assert_eq!(serde_json::from_str::<Line>(&text).expect("our own words"), line, "{}", text);
    }
}

#[test]
fn what_is_no_number_is_refused_with_what_it_is() {
    for (speed, part) in [("\"fast\"", "\"fast\""), ("1e999", "1e999"), ("null", "null"), ("[1]", "[1]")] {
        let text = format!(r#"{{"worker":"w","speed":{speed}}}"#);
        let error = serde_json::from_str::<Machine>(&text).expect_err("no number").to_string();
        assert!(error.contains("a number is expected") && error.contains(part), "{error}");
    }
}
