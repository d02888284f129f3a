//! Today's date, as templates write it into a system prompt.

use std::time::SystemTime;

use minijinja::{Error, ErrorKind};

/// `strftime_now(format)`: the current time in UTC.
///
/// transformers uses the machine's own zone. Workers of one fleet may stand in several, and the same conversation should
/// make the same prompt on each.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    strftime(format, since_1970.as_secs())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Python's `strftime` in the C locale, for those fields that make sense in a prompt; `%-d` drops the leading zero.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let time = Time::of(seconds);
    let mut result = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            result.push(character);
            continue;
        }
        let mut field = characters.next();
        let bare = field == Some('-');
        if bare {
            field = characters.next();
        }
        let text = field.and_then(|field| time.field(field)).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know all of the format {format:?}"))
        })?;
        // All but the last character may go: midnight is hour 0.
        let zeros = text.bytes().take(text.len() - 1).take_while(|byte| matches!(byte, b'0' | b' ')).count();
        result.push_str(if bare { &text[zeros..] } else { &text });
    }
    Ok(result)
}

struct Time {
    year: u64,
    month: u64,
    day: u64,
    day_of_year: u64,
    weekday: u64,
    second_of_day: u64,
}

impl Time {
    /// The civil date of a Unix time, by Howard Hinnant's `civil_from_days` ("chrono-compatible low-level date
    /// algorithms"), for days from 1970 on.
    fn of(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let since_march = days + 719_468; // days since 1 March of the year 0
        let era = since_march / 146_097;
        let day_of_era = since_march % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_march_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let before_march = 59 + u64::from(leap);
        Self {
            year,
            month,
            day: day_of_march_year - (153 * march_month + 2) / 5 + 1,
            day_of_year: if month > 2 { day_of_march_year + before_march + 1 } else { day_of_march_year - 305 },
            weekday: (days + 4) % 7, // 1 January 1970 was a Thursday
            second_of_day: seconds % 86_400,
        }
    }

    fn field(&self, field: char) -> Option<String> {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let half_day = if hour % 12 == 0 { 12 } else { hour % 12 };
        let (month, weekday) = (MONTHS[self.month as usize - 1], WEEKDAYS[self.weekday as usize]);
        Some(match field {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'H' => format!("{hour:02}"),
            'I' => format!("{half_day:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Right answers from Python: time.strftime(format, time.gmtime(seconds)).
    const EVERYTHING: &str = "%Y %y %m %B %b %d %e %j %A %a %H %I %M %S %p %F %T 100%%";

    const EXPECTED: [(u64, &str); 8] = [
        (0, "1970 70 01 January Jan 01  1 001 Thursday Thu 00 12 00 00 AM 1970-01-01 00:00:00 100%"),
        (951782399, "2000 00 02 February Feb 28 28 059 Monday Mon 23 11 59 59 PM 2000-02-28 23:59:59 100%"),
        (951782400, "2000 00 02 February Feb 29 29 060 Tuesday Tue 00 12 00 00 AM 2000-02-29 00:00:00 100%"),
        (1709251199, "2024 24 02 February Feb 29 29 060 Thursday Thu 23 11 59 59 PM 2024-02-29 23:59:59 100%"),
        (1735646400, "2024 24 12 December Dec 31 31 366 Tuesday Tue 12 12 00 00 PM 2024-12-31 12:00:00 100%"),
        (1672531201, "2023 23 01 January Jan 01  1 001 Sunday Sun 00 12 00 01 AM 2023-01-01 00:00:01 100%"),
        (4107589509, "2100 00 03 March Mar 01  1 060 Monday Mon 13 01 05 09 PM 2100-03-01 13:05:09 100%"),
        (1783166340, "2026 26 07 July Jul 04  4 185 Saturday Sat 11 11 59 00 AM 2026-07-04 11:59:00 100%"),
    ];

    #[test]
    fn dates_are_those_of_python() {
        for (seconds, right) in EXPECTED {
            assert_eq!(strftime(EVERYTHING, seconds).unwrap(), right);
        }
    }

    #[test]
    fn a_leading_zero_can_be_dropped() {
        assert_eq!(strftime("%-d.%-m. %-H:%M", 1_704_153_600).unwrap(), "2.1. 0:00");
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        for format in ["%Q", "%", "%-"] {
            assert!(strftime(format, 0).is_err());
        }
        assert!(strftime_now("%Y").is_ok_and(|year| year.as_str() >= "2025"));
    }
}
