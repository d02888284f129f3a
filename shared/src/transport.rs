//! How a worker wants to be spoken to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The protocol a worker speaks. The gateway translates; the two sides of a request need not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Muster's own: JSON in, server-sent token events out ([`crate::generate`]).
    Http,
    /// The same messages over gRPC (`proto/muster.proto`).
    Grpc,
    /// FastChat's worker API: NUL-delimited frames of cumulative text ([`crate::fastchat`]).
    FastChat,
    /// OpenAI's API, as vLLM, llama.cpp's server and many others speak it.
    OpenAi,
}

impl Transport {
    /// Every transport, in the order in which they are listed to users.
    pub const ALL: [Self; 4] = [Self::Http, Self::Grpc, Self::FastChat, Self::OpenAi];

    /// The name in configuration files, flags and registrations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::FastChat => "fastchat",
            Self::OpenAi => "openai",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A transport name that is none of the legal ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown transport `{given}`; expected one of: {}", names())]
pub struct UnknownTransport {
    /// The name as it was given.
    pub given: String,
}

fn names() -> String {
    Transport::ALL.map(Transport::name).join(", ")
}

impl FromStr for Transport {
    type Err = UnknownTransport;

    /// Reads a transport's name in any case.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|transport| transport.name().eq_ignore_ascii_case(given))
            .ok_or_else(|| UnknownTransport { given: given.to_owned() })
    }
}

impl Serialize for Transport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Transport {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_is_read_in_any_case() {
        assert_eq!("HTTP".parse(), Ok(Transport::Http));
        assert_eq!("FastChat".parse(), Ok(Transport::FastChat));
        assert_eq!("gRPC".parse(), Ok(Transport::Grpc));
        assert_eq!("OpenAI".parse(), Ok(Transport::OpenAi));
    }

    #[test]
    fn an_unknown_transport_is_refused_with_the_legal_names() {
        let error = "smoke-signal".parse::<Transport>().expect_err("no such transport");
        assert_eq!(
            error.to_string(),
            "unknown transport `smoke-signal`; expected one of: http, grpc, fastchat, openai"
        );
    }
}
