//! What a path of the protocol asks for. Names of models may hold slashes, as they are or as `%2F`: a path is read from
//! both of its ends.

use std::borrow::Cow;

use axum::http::Method;
use muster_shared::problem::{Kind, Problem};
use percent_encoding::percent_decode_str;

use crate::upstream::tensor::{About, Change};

/// A call, of a model perhaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) call: Call,
    /// The model's name; empty where the call is not of one.
    pub(super) model: String,
    pub(super) version: Option<String>,
}

/// A call of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Server,
    Live,
    Ready,
    Model(About),
    Statistics,
    Infer,
    Index,
    Change(Change),
    /// Of Triton's, and not here.
    Absent(&'static str),
}

impl Call {
    fn method(self) -> Option<Method> {
        match self {
            Self::Infer | Self::Index | Self::Change(_) => Some(Method::POST),
            Self::Absent(_) => None,
            _ => Some(Method::GET),
        }
    }
}

/// Reads a path below `/v2`.
///
/// # Errors
/// Where there is nothing, or it takes another method.
pub(super) fn read(method: &Method, path: &str) -> Result<Asked, Problem> {
    let not_found = || {
        let message = format!("unknown path {method} {path}; models are run with POST /v2/models/MODEL/infer");
        Problem::new(Kind::NotFound, message)
    };
    let rest = path.strip_prefix("/v2").unwrap_or_default();
    let segments: Vec<&str> = rest.split('/').skip(1).collect();
    let asked = asked(&segments).ok_or_else(not_found)?;
    match asked.call.method() {
        Some(wanted) if wanted != *method => {
            Err(Problem::new(Kind::MethodNotAllowed, format!("{path} takes {wanted}, and {method} was sent")))
        }
        _ => Ok(asked),
    }
}

fn asked(segments: &[&str]) -> Option<Asked> {
    let plain = |call| Some(Asked { call, model: String::new(), version: None });
    match segments {
        [] | [""] => plain(Call::Server),
        ["health", "live"] => plain(Call::Live),
        ["health", "ready"] => plain(Call::Ready),
        ["models", "stats"] => plain(Call::Statistics),
        ["repository", "index"] => plain(Call::Index),
        ["repository", "models", name @ .., "load"] => named(name, None, Call::Change(Change::Load)),
        ["repository", "models", name @ .., "unload"] => named(name, None, Call::Change(Change::Unload)),
        ["trace", ..] | ["models", .., "trace", "setting"] => plain(Call::Absent("settings for traces")),
        ["logging", ..] => plain(Call::Absent("settings for logs over this protocol")),
        ["systemsharedmemory" | "cudasharedmemory", ..] => plain(Call::Absent("memory that it shares with clients")),
        ["models", model @ .., "infer"] => versioned(model, Call::Infer),
        ["models", model @ .., "ready"] => versioned(model, Call::Model(About::Ready)),
        ["models", model @ .., "config"] => versioned(model, Call::Model(About::Config)),
        ["models", model @ .., "stats"] => versioned(model, Call::Statistics),
        ["models", model @ ..] => versioned(model, Call::Model(About::Metadata)),
        _ => None,
    }
}

fn versioned(model: &[&str], call: Call) -> Option<Asked> {
    match model {
        [name @ .., "versions", version] if !name.is_empty() => named(name, Some(version), call),
        name => named(name, None, call),
    }
}

fn named(name: &[&str], version: Option<&str>, call: Call) -> Option<Asked> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned);
    let model = decoded(&name.join("/")).filter(|model| !model.is_empty())?;
    let version = version.map(|version| decoded(version).ok_or(())).transpose().ok()?;
    Some(Asked { call, model, version: version.filter(|version| !version.is_empty()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Asked {
        read(&Method::GET, path).expect(path)
    }

    #[test]
    fn a_path_is_read_from_both_of_its_ends() {
        let asked = |model: &str, version: Option<&str>, call| Asked {
            call,
            model: model.to_owned(),
            version: version.map(str::to_owned),
        };
        assert_eq!(get("/v2").call, Call::Server);
        assert_eq!(get("/v2/").call, Call::Server);
        assert_eq!(get("/v2/models/stats"), asked("", None, Call::Statistics));
        assert_eq!(get("/v2/models/m"), asked("m", None, Call::Model(About::Metadata)));
        assert_eq!(get("/v2/models/org/m/versions/3"), asked("org/m", Some("3"), Call::Model(About::Metadata)));
        assert_eq!(get("/v2/models/org%2Fm/ready"), asked("org/m", None, Call::Model(About::Ready)));
        assert_eq!(get("/v2/models/a%20b/versions/1/config"), asked("a b", Some("1"), Call::Model(About::Config)));
        assert_eq!(get("/v2/models/org/m/stats"), asked("org/m", None, Call::Statistics));
        assert_eq!(get("/v2/models/versions/1"), asked("versions/1", None, Call::Model(About::Metadata)));
        let infer = read(&Method::POST, "/v2/models/org/m/versions/2/infer").expect("a run");
        assert_eq!(infer, asked("org/m", Some("2"), Call::Infer));
        let load = read(&Method::POST, "/v2/repository/models/org/m/load").expect("a change");
        assert_eq!(load, asked("org/m", None, Call::Change(Change::Load)));
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for path in ["/v2/models", "/v2/models//infer", "/v2/nothing", "/v2/models/%ff"] {
            assert_eq!(read(&Method::GET, path).expect_err(path).kind, Kind::NotFound, "{path}");
        }
        for path in ["/v2/models/m/infer", "/v2/repository/index"] {
            let problem = read(&Method::GET, path).expect_err(path);
            assert!(problem.kind == Kind::MethodNotAllowed && problem.message.contains("POST"), "{problem}");
        }
        for path in ["/v2/trace/setting", "/v2/models/m/trace/setting", "/v2/logging", "/v2/cudasharedmemory/status"] {
            assert!(matches!(get(path).call, Call::Absent(_)), "{path}");
        }
    }
}
