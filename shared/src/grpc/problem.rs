//! A [`Problem`] as the status of a call: the code of its kind for whoever looks no further, and the problem itself in
//! the metadata, so that nothing is lost on the way to another muster.

use prost::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::{Malformed, proto};
use crate::problem::{Kind, Problem};

/// Name of the metadata that holds a serialised [`proto::Problem`].
pub const PROBLEM: &str = "muster-problem-bin";
/// Longest message of a problem, and of the status around it, in bytes. gRPC's clients take 8 KiB of metadata, and the
/// one is longer on the wire by a third, the other up to three times as long.
const MESSAGE_LIMIT: usize = 4 << 10;
const STATUS_LIMIT: usize = 256;

/// The status with which a problem travels.
pub fn to_status(mut problem: Problem) -> Status {
    cut(&mut problem.message, MESSAGE_LIMIT);
    let code = code(problem.kind);
    let mut message = problem.message.clone();
    cut(&mut message, STATUS_LIMIT);
    let mut metadata = MetadataMap::new();
    let bytes = proto::Problem::from(problem).encode_to_vec();
    metadata.insert_bin(PROBLEM, MetadataValue::from_bytes(&bytes));
    Status::with_metadata(code, message, metadata)
}

/// The problem that a status tells: a worker's own, or what the code of a foreign one means. `None` where the status
/// says nothing that the asker could act upon.
pub fn of_status(status: &Status) -> Option<Problem> {
    let own = status.metadata().get_bin(PROBLEM).and_then(|value| value.to_bytes().ok());
    let own = own.and_then(|bytes| proto::Problem::decode(bytes).ok()).and_then(|problem| problem.try_into().ok());
    own.or_else(|| Some(Problem::new(kind(status.code())?, status.message())))
}

fn cut(text: &mut String, limit: usize) {
    text.truncate(text.floor_char_boundary(limit));
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid | Kind::PromptTooLong => Code::InvalidArgument,
        Kind::BadKey => Code::Unauthenticated,
        Kind::Forbidden => Code::PermissionDenied,
        Kind::UnknownModel | Kind::NotFound => Code::NotFound,
        Kind::MethodNotAllowed => Code::Unimplemented,
        Kind::Stale => Code::FailedPrecondition,
        Kind::TooLarge => Code::OutOfRange,
        Kind::UnsupportedCoding => Code::Unimplemented,
        Kind::RateLimited | Kind::Overloaded => Code::ResourceExhausted,
        Kind::NoWorker => Code::Unavailable,
        Kind::Timeout | Kind::TooSlow => Code::DeadlineExceeded,
        Kind::Run | Kind::Upstream | Kind::Bug => Code::Internal,
    }
}

/// What the code of a worker that is not muster's means.
fn kind(code: Code) -> Option<Kind> {
    match code {
        Code::InvalidArgument => Some(Kind::Invalid),
        Code::Unauthenticated | Code::PermissionDenied => Some(Kind::BadKey),
        Code::NotFound => Some(Kind::UnknownModel), // there is nothing else that could be missing
        Code::ResourceExhausted => Some(Kind::Overloaded),
        Code::Unavailable => Some(Kind::NoWorker),
        Code::DeadlineExceeded => Some(Kind::Timeout),
        _ => None,
    }
}

impl From<Problem> for proto::Problem {
    fn from(Problem { kind, message, param, retry_after_ms }: Problem) -> Self {
        Self { kind: proto::ProblemKind::from(kind).into(), message, param, retry_after_ms }
    }
}

impl TryFrom<proto::Problem> for Problem {
    type Error = Malformed;

    fn try_from(problem: proto::Problem) -> Result<Self, Malformed> {
        let kind = proto::ProblemKind::try_from(problem.kind).ok().and_then(known);
        let kind = kind.ok_or_else(|| Malformed::unknown("kind", problem.kind))?;
        Ok(Self { kind, message: problem.message, param: problem.param, retry_after_ms: problem.retry_after_ms })
    }
}

impl From<Kind> for proto::ProblemKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Invalid => Self::Invalid,
            Kind::PromptTooLong => Self::PromptTooLong,
            Kind::BadKey => Self::BadKey,
            Kind::UnknownModel => Self::UnknownModel,
            Kind::NotFound => Self::NotFound,
            Kind::MethodNotAllowed => Self::MethodNotAllowed,
            Kind::Stale => Self::Stale,
            Kind::TooLarge => Self::TooLarge,
            Kind::RateLimited => Self::RateLimited,
            Kind::Overloaded => Self::Overloaded,
            Kind::NoWorker => Self::NoWorker,
            Kind::Upstream => Self::Upstream,
            Kind::Timeout => Self::Timeout,
            Kind::Bug => Self::Bug,
            Kind::UnsupportedCoding => Self::UnsupportedCoding,
            Kind::Run => Self::Run,
            Kind::Forbidden => Self::Forbidden,
            Kind::TooSlow => Self::TooSlow,
        }
    }
}

fn known(kind: proto::ProblemKind) -> Option<Kind> {
    use proto::ProblemKind as Proto;
    Some(match kind {
        Proto::Unspecified => return None,
        Proto::Invalid => Kind::Invalid,
        Proto::PromptTooLong => Kind::PromptTooLong,
        Proto::BadKey => Kind::BadKey,
        Proto::UnknownModel => Kind::UnknownModel,
        Proto::NotFound => Kind::NotFound,
        Proto::MethodNotAllowed => Kind::MethodNotAllowed,
        Proto::Stale => Kind::Stale,
        Proto::TooLarge => Kind::TooLarge,
        Proto::RateLimited => Kind::RateLimited,
        Proto::Overloaded => Kind::Overloaded,
        Proto::NoWorker => Kind::NoWorker,
        Proto::Upstream => Kind::Upstream,
        Proto::Timeout => Kind::Timeout,
        Proto::Bug => Kind::Bug,
        Proto::UnsupportedCoding => Kind::UnsupportedCoding,
        Proto::Run => Kind::Run,
        Proto::Forbidden => Kind::Forbidden,
        Proto::TooSlow => Kind::TooSlow,
    })
}
