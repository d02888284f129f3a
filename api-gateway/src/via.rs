//! Gateways in a circle: one that is attached as a worker of its own fleet, by way of others perhaps.
//!
//! Who passes a request on signs it with the name of this run; who finds its own name has had it before.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use muster_shared::problem::{Kind, Problem};

/// The gateways that a request has come through: names with commas between them, in one line or several.
pub(crate) const VIA: HeaderName = HeaderName::from_static("x-muster-via");
/// Most gateways that a request may come through.
const HOPS: usize = 8;

/// Refuses a request that has come through this gateway before, or through too many.
///
/// # Errors
/// [`Kind::Invalid`], with words for whoever has attached what to what.
pub(crate) fn check(headers: &HeaderMap, own: &HeaderValue) -> Result<(), Problem> {
    let mut hops = 0;
    for line in headers.get_all(VIA) {
        for name in line.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if name == own.as_bytes() {
                let message = "loop detected: this request has come through this gateway before; the gateway is \
                               attached in a circle, as a worker (transport openai) of the fleet that it serves \
                               itself, directly or through other gateways: detach it";
                return Err(Problem::new(Kind::Invalid, message));
            }
            hops += 1;
        }
    }
    if hops >= HOPS {
        let message = format!(
            "loop detected: this request has come through {hops} gateways and {HOPS} may pass it on; are gateways \
             attached to each other in a circle, as workers of the transport openai?"
        );
        return Err(Problem::new(Kind::Invalid, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(lines: &[&str]) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(VIA, HeaderValue::from_str(line).expect("a header"));
        }
        check(&headers, &HeaderValue::from_static("me")).map_err(|problem| problem.message)
    }

    #[test]
    fn a_request_comes_through_a_gateway_once() {
        for lines in [&[][..], &["other"], &["", ","], &["men, you", "m e"]] {
            assert_eq!(checked(lines), Ok(()), "{lines:?}");
        }
        for lines in [&["me"][..], &["other,me"], &["other", " me , third"]] {
            assert!(checked(lines).expect_err("a circle").contains("attached in a circle"), "{lines:?}");
        }
    }

    #[test]
    fn a_request_comes_through_few_gateways() {
        assert_eq!(checked(&["1,2,3,4", "5,6,7"]), Ok(()));
        assert!(checked(&["1,2,3,4", "5,6,7,8"]).expect_err("too many").contains("8 gateways"));
    }
}
