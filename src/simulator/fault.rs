//! What the simulator does wrong when it is told to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Error;

/// What a fault may look like; every parse error quotes it.
const ALLOWED: &str = "status:CODE, status:CODE:retry-after:SECONDS, \
    status:CODE:retry-date:SECONDS, status:CODE:text (CODE 400 to 599), drop:N, truncate:N, \
    error:N, silence:N or malformed:N (N tokens), \
    each with *K behind it (K from 1) to fail only the first K times";

/// One way to fail, and how often.
///
/// Its string form is what the directive `fault=` and the option `fault` take:
///
/// | form | what the client sees |
/// |---|---|
/// | `status:503` | that status with an error object |
/// | `status:429:retry-after:2` | the same with `retry-after: 2` |
/// | `status:429:retry-date:2` | the same with `retry-after` as an HTTP date two seconds ahead |
/// | `status:502:text` | that status with a plain text body, as a proxy sends it |
/// | `drop:5` | the connection breaks after five tokens |
/// | `truncate:5` | the body ends cleanly after five tokens, without `finish_reason` and `[DONE]` |
/// | `error:5` | after five tokens `data: {"error": …}`, then the body ends |
/// | `silence:5` | after five tokens nothing more, until the client leaves |
/// | `malformed:5` | after five tokens one chunk that is not JSON, then the rest |
///
/// With `*K` behind it (`status:503*2`) only the first K requests with the same canonical form
/// fail. A number of tokens above the answer's length counts as that length: the fault then comes
/// after the text and before its end. With 0 the client gets the response's head and no chunk
/// before the fault.
///
/// A request that does not stream meets the same faults in the form that fits one body: `drop`
/// breaks the connection in the middle of it, `truncate` ends it in the middle, `error` is a status
/// 500, `silence` never sends a response, and `malformed` is a body that is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fault {
    pub(super) kind: Kind,
    /// How many requests with the same canonical form fail; all of them when `None`.
    pub(super) first: Option<u32>,
}

/// What goes wrong. Numbers of tokens are per choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Status(u16, Reply),
    Drop(u32),
    Truncate(u32),
    Error(u32),
    Silence(u32),
    Malformed(u32),
}

/// How an error status is dressed. Times are in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Json,
    RetryAfter(u32),
    RetryDate(u32),
    Text,
}

impl Fault {
    /// Whether the attempt with this number (from 1) fails.
    pub(super) fn hits(self, attempt: u32) -> bool {
        self.first.is_none_or(|first| attempt <= first)
    }

    /// After how many tokens a stream fails; `None` when it never begins.
    pub(super) fn after(self) -> Option<u32> {
        match self.kind {
            Kind::Status(..) => None,
            Kind::Drop(n)
            | Kind::Truncate(n)
            | Kind::Error(n)
            | Kind::Silence(n)
            | Kind::Malformed(n) => Some(n),
        }
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self, Error> {
        let (spec, first) = match value.rsplit_once('*') {
            Some((spec, first)) => (spec, first.parse().ok().filter(|first| *first > 0).map(Some)),
            None => (value, Some(None)),
        };
        match (parse_kind(spec), first) {
            (Some(kind), Some(first)) => Ok(Self { kind, first }),
            _ => Err(Error::Fault { value: value.to_owned(), allowed: ALLOWED }),
        }
    }
}

fn parse_kind(spec: &str) -> Option<Kind> {
    let fields: Vec<&str> = spec.split(':').collect();
    let reply = match fields.as_slice() {
        ["status", _] => Reply::Json,
        ["status", _, "text"] => Reply::Text,
        ["status", _, "retry-after", seconds] => Reply::RetryAfter(seconds.parse().ok()?),
        ["status", _, "retry-date", seconds] => Reply::RetryDate(seconds.parse().ok()?),
        ["drop", n] => return n.parse().ok().map(Kind::Drop),
        ["truncate", n] => return n.parse().ok().map(Kind::Truncate),
        ["error", n] => return n.parse().ok().map(Kind::Error),
        ["silence", n] => return n.parse().ok().map(Kind::Silence),
        ["malformed", n] => return n.parse().ok().map(Kind::Malformed),
        _ => return None,
    };
    let code = fields.get(1)?.parse().ok().filter(|code| (400..=599).contains(code))?;
    Some(Kind::Status(code, reply))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Status(code, Reply::Json) => write!(f, "status:{code}"),
            Kind::Status(code, Reply::RetryAfter(seconds)) => {
                write!(f, "status:{code}:retry-after:{seconds}")
            }
            Kind::Status(code, Reply::RetryDate(seconds)) => {
                write!(f, "status:{code}:retry-date:{seconds}")
            }
            Kind::Status(code, Reply::Text) => write!(f, "status:{code}:text"),
            Kind::Drop(n) => write!(f, "drop:{n}"),
            Kind::Truncate(n) => write!(f, "truncate:{n}"),
            Kind::Error(n) => write!(f, "error:{n}"),
            Kind::Silence(n) => write!(f, "silence:{n}"),
            Kind::Malformed(n) => write!(f, "malformed:{n}"),
        }?;
        self.first.map_or(Ok(()), |first| write!(f, "*{first}"))
    }
}

impl TryFrom<String> for Fault {
    type Error = Error;

    fn try_from(value: String) -> Result<Self, Error> {
        value.parse()
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_survives_the_round_trip() {
        for form in [
            "status:503",
            "status:429:retry-after:2",
            "status:429:retry-date:2*1",
            "status:502:text",
            "drop:0",
            "truncate:5",
            "error:5*3",
            "silence:1",
            "malformed:7",
        ] {
            assert_eq!(form.parse::<Fault>().unwrap().to_string(), form);
            let json = serde_json::to_string(&form.parse::<Fault>().unwrap()).unwrap();
            assert_eq!(serde_json::from_str::<Fault>(&json).unwrap().to_string(), form);
        }
    }

    #[test]
    fn a_wrong_form_is_refused_with_what_is_allowed() {
        for form in [
            "",
            "status",
            "status:200",
            "status:600",
            "status:503:",
            "drop",
            "drop:-1",
            "drop:1*0",
            "drop:1*",
            "rain:1",
        ] {
            let message = form.parse::<Fault>().unwrap_err().to_string();
            assert!(
                message.contains(&format!("`{form}`")) && message.contains("malformed:N"),
                "{message}"
            );
        }
    }
}
