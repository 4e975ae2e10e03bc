//! What is refused before it costs anything.

use serde::Deserialize;

use super::super::{
    app::App,
    error::{Refusal, brief},
};
use crate::{job::ChatRequest, producer};

/// Bytes of a request that are none of its job's: white space, and the names of a batch line.
const WRAPPING: usize = 4 * 1024;

/// Refuses what no model takes, before it costs anything: messages that nobody says, `stream` that is no flag.
pub(super) fn sound(request: &ChatRequest) -> Result<(), Refusal> {
    #[derive(Deserialize)]
    struct Message {
        #[serde(rename = "role")]
        _role: String,
    }
    if request.get::<Vec<Message>>("messages").is_none() {
        let text = "messages holds something else than objects with a `role`, which is text";
        return Err(Refusal::param("messages", text));
    }
    flag(request, "stream").map(drop)
}

/// A field that is true, false, null or not there.
pub(in crate::gateway) fn flag(request: &ChatRequest, name: &str) -> Result<bool, Refusal> {
    match request.raw(name).map(str::trim) {
        None | Some("null" | "false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => {
            let text = format!("{name} is {}; allowed: true or false", brief(other));
            Err(Refusal::param(name, text))
        }
    }
}

/// Refuses a job that is too large before anything is read out of it: a value takes many times the memory of its
/// text. What only just does not fit is refused once it is encoded.
pub(in crate::gateway) fn fits(app: &App, text: &[u8]) -> Result<(), Refusal> {
    let (bytes, max) = (text.trim_ascii().len(), app.producer.max_payload());
    if bytes > max.saturating_add(WRAPPING) {
        return Err(producer::Error::TooLarge { bytes, max }.into());
    }
    Ok(())
}
