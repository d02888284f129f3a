//! How long a client will wait, where it says so.
//!
//! Its own words are taken: it hangs up by itself when its time is over. What they are good for is before that. A
//! request for which no worker can be free in time is refused at once, so that the client can go elsewhere.

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName};
use muster_shared::tensor::{Parameter, Parameters};

/// Seconds, with a fraction: of OpenAI's client in Python.
const EXACT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");
/// Whole seconds, rounded down: of OpenAI's client in JavaScript, which says 0 when it waits for 900 ms.
const ROUNDED: HeaderName = HeaderName::from_static("x-stainless-timeout");
/// What rounding may have taken away. Who is thought to wait longer than they do hang up by themselves; who is thought
/// to wait less would be refused without need.
const ROUNDING: Duration = Duration::from_secs(1);
/// That of gRPC's clients: a number with a unit.
const GRPC: HeaderName = HeaderName::from_static("grpc-timeout");
/// The units, in nanoseconds.
const UNITS: [(char, u64); 6] =
    [('n', 1), ('u', 1_000), ('m', 1_000_000), ('S', 1_000_000_000), ('M', 60_000_000_000), ('H', 3_600_000_000_000)];

/// When the client gives up whose request came `now`. What cannot be read was not said to us, and counts for nothing.
pub(crate) fn of(headers: &HeaderMap, now: Instant) -> Option<Instant> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
    let rounded = || text(&ROUNDED).and_then(seconds)?.checked_add(ROUNDING);
    let said = text(&EXACT).and_then(seconds).or_else(rounded).or_else(|| text(&GRPC).and_then(grpc));
    now.checked_add(said?)
}

/// The same with the `timeout` of a request for tensors: microseconds in queues, of which 0 means no limit. The worker
/// says what is wrong with any other value.
pub(crate) fn of_tensors(parameters: &Parameters, until: Option<Instant>, now: Instant) -> Option<Instant> {
    let micros = match parameters.get("timeout") {
        Some(Parameter::Int(number)) => u64::try_from(*number).ok(),
        Some(Parameter::Uint(number)) => Some(*number),
        Some(Parameter::String(text)) => text.parse().ok(),
        _ => None,
    };
    let own = micros.filter(|micros| *micros > 0).and_then(|micros| now.checked_add(Duration::from_micros(micros)));
    until.into_iter().chain(own).min()
}

fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse().ok()?).ok()
}

fn grpc(text: &str) -> Option<Duration> {
    let (end, unit) = text.char_indices().next_back()?;
    let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let number: u64 = text[..end].parse().ok()?;
    Some(Duration::from_nanos(number.checked_mul(*nanos)?))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn told(name: &'static str, value: &str) -> Option<Duration> {
        let (mut headers, now) = (HeaderMap::new(), Instant::now());
        headers.insert(name, HeaderValue::from_str(value).expect("a header"));
        of(&headers, now).map(|until| until - now)
    }

    #[test]
    fn clients_say_in_their_own_words_how_long_they_wait() {
        for (name, value, millis) in [
            ("x-stainless-read-timeout", "600.0", 600_000),
            ("x-stainless-read-timeout", "0.25", 250),
            ("x-stainless-read-timeout", "0", 0),
            ("grpc-timeout", "250m", 250),
            ("grpc-timeout", "2S", 2000),
            ("grpc-timeout", "1M", 60_000),
            ("grpc-timeout", "1H", 3_600_000),
            ("grpc-timeout", "2000u", 2),
            ("grpc-timeout", "3000000n", 3),
        ] {
            assert_eq!(told(name, value), Some(Duration::from_millis(millis)), "{name}: {value}");
        }
    }

    #[test]
    fn a_client_that_rounds_its_seconds_down_is_not_taken_to_wait_less_than_it_does() {
        for millis in [1, 900, 1000, 1999, 60_000] {
            let told = told("x-stainless-timeout", &(millis / 1000).to_string()).expect("a time");
            let truth = Duration::from_millis(millis);
            assert!(told >= truth && told <= truth + ROUNDING, "{millis} ms are taken for {told:?}");
        }
        let (mut headers, now) = (HeaderMap::new(), Instant::now());
        headers.insert("x-stainless-timeout", HeaderValue::from_static("60"));
        headers.insert("x-stainless-read-timeout", HeaderValue::from_static("2.5"));
        assert_eq!(of(&headers, now), Some(now + Duration::from_millis(2500)), "what is exact goes before");
    }

    #[test]
    fn what_is_no_time_counts_for_nothing() {
        for value in ["", "-1", "nan", "inf", "1e300", "18446744073709549568", "soon", "1 s"] {
            assert_eq!(told("x-stainless-timeout", value), None, "{value}");
        }
        for value in ["", "5", "S", "5s", "-5S", "99999999999999999H", "5Ä"] {
            let (mut headers, now) = (HeaderMap::new(), Instant::now());
            headers.insert("grpc-timeout", HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
            assert_eq!(of(&headers, now), None, "{value}");
        }
        assert_eq!(of(&HeaderMap::new(), Instant::now()), None);
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_understood_or_passed_over(text in "\\PC*", number in any::<u64>(), unit in "[a-zA-Z]") {
            let _ = (seconds(&text), grpc(&text)); // and does not panic
            if let Some(span) = grpc(&format!("{number}{unit}")) {
                prop_assert!(span.as_nanos() >= number.into());
            }
        }
    }

    #[test]
    fn a_request_for_tensors_has_the_shorter_of_its_two_times() {
        let now = Instant::now();
        let second = now + Duration::from_secs(1);
        let with = |value| of_tensors(&Parameters::from([("timeout".to_owned(), value)]), Some(second), now);
        let millis = |millis| Some(now + Duration::from_millis(millis));
        assert_eq!(with(Parameter::Int(2000)), millis(2));
        assert_eq!(with(Parameter::String("2000".to_owned())), millis(2));
        assert_eq!(with(Parameter::Uint(5_000_000)), Some(second));
        for wrong in [Parameter::Int(0), Parameter::Int(-1), Parameter::Bool(true)] {
            assert_eq!(with(wrong), Some(second));
        }
        assert_eq!(of_tensors(&Parameters::new(), None, now), None);
    }
}
