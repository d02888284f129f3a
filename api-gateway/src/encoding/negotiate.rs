//! Which coding a client takes best (RFC 9110, section 12.5.3).

use axum::http::HeaderMap;
use axum::http::header::ACCEPT_ENCODING;

use super::Coding;

/// A weight of 1, in thousandths.
const FULL: u16 = 1000;

/// The weights that a client gives, in thousandths; 0 means that it does not take the coding.
#[derive(Debug, Default)]
struct Weights {
    zstd: Option<u16>,
    gzip: Option<u16>,
    identity: Option<u16>,
    any: Option<u16>,
}

impl Weights {
    fn place(&mut self, name: &str) -> Option<&mut Option<u16>> {
        match Coding::of(name) {
            Some(Coding::Zstd) => Some(&mut self.zstd),
            Some(Coding::Gzip) => Some(&mut self.gzip),
            None if name.eq_ignore_ascii_case("identity") => Some(&mut self.identity),
            None if name == "*" => Some(&mut self.any),
            None | Some(Coding::Deflate) => None,
        }
    }

    fn of(&self, coding: Coding) -> u16 {
        let named = match coding {
            Coding::Zstd => self.zstd,
            Coding::Gzip => self.gzip,
            Coding::Deflate => return 0, // no answer is in it
        };
        named.or(self.any).unwrap_or(0)
    }
}

/// The coding of an answer; `None`: as it is.
///
/// The highest weight wins, zstd before gzip before no coding where weights are equal. A client that says nothing, or
/// takes nothing that there is, gets the answer as it is.
pub(crate) fn negotiate(headers: &HeaderMap) -> Option<Coding> {
    let mut weights = Weights::default();
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    for (name, weight) in lines.flat_map(|line| line.split(',')).filter_map(element) {
        // Of several for the same coding the first counts.
        if let Some(place) = weights.place(name) {
            place.get_or_insert(weight);
        }
    }
    let identity = weights.identity.or(weights.any).unwrap_or(0);
    let mut best = None;
    for coding in Coding::WRITTEN {
        let weight = weights.of(coding);
        if weight > 0 && weight >= identity && best.is_none_or(|(_, best)| weight > best) {
            best = Some((coding, weight));
        }
    }
    best.map(|(coding, _)| coding)
}

/// Name and weight of one element; one whose weight is none is as good as absent.
fn element(text: &str) -> Option<(&str, u16)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?;
    let weight = match parts.next() {
        None => FULL,
        Some(parameter) => {
            let (key, value) = parameter.split_once('=')?;
            weight(value).filter(|_| key.eq_ignore_ascii_case("q"))?
        }
    };
    Some((name, weight))
}

/// A number from 0 to 1 with up to three digits behind the point, in thousandths.
fn weight(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(FULL),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn chosen(lines: &[&str]) -> Option<Coding> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_str(line).expect("a header"));
        }
        negotiate(&headers)
    }

    #[test]
    fn the_best_that_a_client_takes_is_chosen() {
        use Coding::{Gzip, Zstd};
        for (line, expected) in [
            ("gzip", Some(Gzip)),
            ("zstd", Some(Zstd)),
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("gzip, deflate", Some(Gzip)),
            ("X-GZIP", Some(Gzip)),
            ("GZip ; Q=1.000", Some(Gzip)),
            ("gzip;q=1.0, zstd;q=0.9", Some(Gzip)),
            ("gzip;q=0.8, zstd;q=0.8", Some(Zstd)),
            ("gzip;q=0.001", Some(Gzip)),
            ("*", Some(Zstd)),
            ("zstd;q=0, *", Some(Gzip)),
            ("*;q=0.5, gzip;q=0.7", Some(Gzip)),
            ("gzip, identity", Some(Gzip)),
            ("identity;q=0, *", Some(Zstd)),
            ("", None),
            ("identity", None),
            ("br", None),
            ("deflate", None),
            ("deflate, gzip;q=0.1", Some(Gzip)),
            ("gzip;q=0", None),
            ("*;q=0", None),
            ("identity;q=0, br", None),
            ("identity, gzip;q=0.5", None),
            ("gzip;q=0.5, *;q=1, zstd;q=0", None), // `*` is identity, too
            ("gzip;q=0, gzip", None),
            // What is malformed does not count.
            ("gzip;q=2", None),
            ("gzip;q=0.1234", None),
            ("gzip;q=-1", None),
            ("gzip;q", None),
            ("gzip;level=1", None),
            (",, ;q=1, gzip;q=x, zstd", Some(Zstd)),
        ] {
            assert_eq!(chosen(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn lines_add_up() {
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&["br", "gzip"]), Some(Coding::Gzip));
        assert_eq!(chosen(&["gzip, zstd;q=0.5", "zstd"]), Some(Coding::Gzip));
    }

    proptest! {
        #[test]
        fn any_header_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.append(ACCEPT_ENCODING, value);
                negotiate(&headers);
            }
        }

        #[test]
        fn the_higher_weight_wins(zstd in 0..=1000_u16, gzip in 0..=1000_u16) {
            let number = |weight: u16| format!("{}.{:03}", weight / 1000, weight % 1000);
            let expected = match (zstd, gzip) {
                (0, 0) => None,
                _ if zstd >= gzip => Some(Coding::Zstd),
                _ => Some(Coding::Gzip),
            };
            prop_assert_eq!(chosen(&[&format!("gzip;q={}, zstd; q={}", number(gzip), number(zstd))]), expected);
        }
    }
}
