//! Today's date, as templates write it into a system prompt.

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::{Error, ErrorKind};

/// `strftime_now(format)`: the current time in UTC, in the fields of Python's `strftime`.
///
/// transformers uses the machine's own zone. Workers of one fleet may stand in several, and the same conversation should
/// make the same prompt on each.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(format, Timestamp::now())
}

fn strftime(format: &str, time: Timestamp) -> Result<String, Error> {
    strtime::format(format, &time.to_zoned(TimeZone::UTC)).map_err(|error| {
        let message = format!("strftime_now does not know all of the format {format:?}: {error}");
        Error::new(ErrorKind::InvalidOperation, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Right answers from Python: time.strftime(format, time.gmtime(seconds)).
    const EVERYTHING: &str = "%Y %y %m %B %b %d %e %j %A %a %H %I %M %S %p %F %T 100%%";

    const EXPECTED: [(i64, &str); 8] = [
        (0, "1970 70 01 January Jan 01  1 001 Thursday Thu 00 12 00 00 AM 1970-01-01 00:00:00 100%"),
        (951782399, "2000 00 02 February Feb 28 28 059 Monday Mon 23 11 59 59 PM 2000-02-28 23:59:59 100%"),
        (951782400, "2000 00 02 February Feb 29 29 060 Tuesday Tue 00 12 00 00 AM 2000-02-29 00:00:00 100%"),
        (1709251199, "2024 24 02 February Feb 29 29 060 Thursday Thu 23 11 59 59 PM 2024-02-29 23:59:59 100%"),
        (1735646400, "2024 24 12 December Dec 31 31 366 Tuesday Tue 12 12 00 00 PM 2024-12-31 12:00:00 100%"),
        (1672531201, "2023 23 01 January Jan 01  1 001 Sunday Sun 00 12 00 01 AM 2023-01-01 00:00:01 100%"),
        (4107589509, "2100 00 03 March Mar 01  1 060 Monday Mon 13 01 05 09 PM 2100-03-01 13:05:09 100%"),
        (1783166340, "2026 26 07 July Jul 04  4 185 Saturday Sat 11 11 59 00 AM 2026-07-04 11:59:00 100%"),
    ];

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("within the calendar")
    }

    #[test]
    fn dates_are_those_of_python() {
        for (seconds, right) in EXPECTED {
            assert_eq!(strftime(EVERYTHING, at(seconds)).unwrap(), right);
        }
    }

    #[test]
    fn a_leading_zero_can_be_dropped() {
        assert_eq!(strftime("%-d.%-m. %-H:%M", at(1_704_153_600)).unwrap(), "2.1. 0:00");
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        for format in ["%!", "%", "%-"] {
            assert!(strftime(format, at(0)).is_err());
        }
        assert!(strftime_now("%Y").is_ok_and(|year| year.as_str() >= "2025"));
    }
}
