//! What those hear who may not wait, or have waited in vain.

use std::time::Duration;

use muster_shared::problem::{Kind, Problem};

use super::RETRY_FULL;
use crate::estimate::Expected;
use crate::queue::{COUNTED, Full};
use crate::registry::{Asker, millis};

/// Longest name of a model or a key, in bytes.
const LONGEST_NAME: usize = 512;
/// Most workers that a request excludes: more than any gateway tries.
const MOST_EXCLUDED: usize = 256;

/// It is larger than any request need be.
pub(super) fn outsized(asker: &Asker) -> Option<Problem> {
    let Asker { key, request, note, .. } = asker;
    let names = [("model", Some(&*request.model)), ("key", key.as_deref()), ("request", note.request.as_deref())];
    let long = names.into_iter().find(|(_, name)| name.is_some_and(|name| name.len() > LONGEST_NAME));
    if let Some((param, _)) = long {
        let message = format!("the name of the {param} has more than {LONGEST_NAME} bytes");
        return Some(Problem::invalid(param, message));
    }
    let excluded = request.exclude.len();
    (excluded > MOST_EXCLUDED).then(|| {
        Problem::invalid("exclude", format!("the request excludes {excluded} workers; {MOST_EXCLUDED} are the most"))
    })
}

/// Live workers without room, by why.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Crowd {
    pub(super) full: u32,
    pub(super) open: u32,
    pub(super) paused: u32,
}

/// No worker of `what` has room.
pub(super) fn overloaded(what: &str, crowd: Crowd, waited: Duration) -> Problem {
    let Crowd { full, open, paused } = crowd;
    let mut message =
        format!("no worker of {what} has room: {full} full, {open} suspended after failures or yet to answer");
    if paused > 0 {
        message += &format!(", {paused} paused, their machines being short of processors or memory");
    }
    if !waited.is_zero() {
        message += &format!("; the request waited {} ms", millis(waited));
    }
    Problem::new(Kind::Overloaded, message).with_retry_after_ms(millis(RETRY_FULL))
}

/// It would exceed a bound. `no_room`: why it would have to wait.
pub(super) fn bounded(full: Full, asker: &Asker, no_room: Problem) -> Problem {
    let bound = match full {
        Full::Key(count) => {
            let key = asker.key.as_deref().unwrap_or_default();
            let message = format!("the key `{key}` has {count} requests waiting, the most that one key may have");
            return Problem { kind: Kind::RateLimited, message, ..no_room };
        }
        Full::Model(count) => format!("{count} requests wait for it already, the most that may wait for one model"),
        Full::All(count) => format!("{count} requests wait already, the most there may be"),
    };
    Problem { message: format!("{}, and {bound}", no_room.message), ..no_room }
}

/// It cannot be answered in the time that is left.
pub(super) fn hopeless(asker: &Asker, ahead: usize, expected: Expected, left: Duration) -> Problem {
    let (left, expected_ms, model) = (millis(left), millis(expected.total()), &asker.request.model);
    let whose = if asker.key.is_some() { "of the same key" } else { "without a key" };
    let ahead = match ahead {
        0 => String::new(), // one answer alone takes that long
        1 => format!(": 1 request {whose} goes before it"),
        COUNTED => format!(": {ahead} requests {whose} or more go before it"),
        _ => format!(": {ahead} requests {whose} go before it"),
    };
    let message = format!(
        "the request has {left} ms left, and no answer of the model `{model}` is to be expected for {expected_ms} \
         ms{ahead}; give it more time, or try again later"
    );
    Problem::new(Kind::Overloaded, message).with_retry_after_ms(expected_ms)
}

/// Its time was over when it came.
pub(super) fn late() -> Problem {
    let message = "the request has no time left (`deadline_ms` is 0); give it more time";
    Problem::new(Kind::Timeout, message).with_param("deadline_ms")
}

/// Its time passed while it waited.
pub(super) fn waited_in_vain(asker: &Asker, waited: Duration) -> Problem {
    let message = format!(
        "the time that was given for the request is over: it waited {} ms for room on a worker of the model `{}`",
        millis(waited),
        asker.request.model
    );
    Problem::new(Kind::Timeout, message)
}

#[cfg(test)]
mod tests {
    use muster_shared::id::GatewayId;

    use super::*;
    use crate::fixtures::asker;

    #[test]
    fn a_request_without_hope_hears_how_many_go_before_it_where_any_do() {
        let expected = Expected { worker: Duration::from_millis(500), answer: Duration::from_millis(1500) };
        let words = |key: Option<&str>, ahead| {
            let asker = Asker { key: key.map(Into::into), ..asker(GatewayId::new()) };
            hopeless(&asker, ahead, expected, Duration::from_millis(700)).message
        };
        for (key, ahead, clause) in [
            (Some("alice"), 0, ""),
            (None, 0, ""),
            (Some("alice"), 1, ": 1 request of the same key goes before it"),
            (Some("alice"), 80, ": 80 requests of the same key go before it"),
            (None, 1, ": 1 request without a key goes before it"),
            (None, 2, ": 2 requests without a key go before it"),
            (None, COUNTED, ": 1000 requests without a key or more go before it"),
        ] {
            let start = "the request has 700 ms left, and no answer of the model `m` is to be expected for 2000 ms";
            let end = "; give it more time, or try again later";
            assert_eq!(words(key, ahead), format!("{start}{clause}{end}"));
        }
    }
}
