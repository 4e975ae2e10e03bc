//! How a socket ends.

use axum::extract::ws::close_code;
use tungstenite::error::ProtocolError;

/// Codes behind which nothing can be read any more.
pub(super) const ILLEGIBLE: [u16; 4] =
    [close_code::SIZE, close_code::PROTOCOL, close_code::INVALID, close_code::AGAIN];

/// What is said of a message for which there is no room beside the streams that are open.
pub(super) const NO_ROOM: &str =
    "no room for messages as large as these (gateway.limits.max_streams)";

/// Why a socket ends.
pub(super) enum End {
    /// With this code and these words.
    Close(u16, String),
    /// The client is gone.
    Gone,
}

pub(super) type Step = Result<(), End>;

impl End {
    /// Why a connection cannot be read any more.
    pub(super) fn of(error: axum::Error) -> Self {
        let Ok(fault) = error.into_inner().downcast::<tungstenite::Error>() else {
            return Self::Gone;
        };
        let code = match &*fault {
            tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                return Self::Gone;
            }
            tungstenite::Error::Protocol(_) => close_code::PROTOCOL,
            tungstenite::Error::Utf8(_) => close_code::INVALID,
            tungstenite::Error::Capacity(_) => close_code::SIZE,
            tungstenite::Error::Io(error) if error.kind() == std::io::ErrorKind::OutOfMemory => {
                let text =
                    "too many bytes of unfinished messages at once (gateway.limits.max_bodies)";
                return Self::Close(close_code::AGAIN, text.to_owned());
            }
            _ => return Self::Gone,
        };
        Self::Close(code, fault.to_string())
    }
}
