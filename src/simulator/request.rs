//! Reading a chat request: what decides the text, and what decides how it is sent.

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::directives::{Directives, MAX_TOKENS};
use super::wire::Refusal;

/// The fields of a Chat Completions request that the simulator reads; others are accepted and
/// ignored.
#[derive(Debug, Deserialize)]
struct Body {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_tokens: Option<u32>,
    tools: Option<Vec<Value>>,
    #[serde(default)]
    tool_choice: Value,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// A valid chat request.
#[derive(Debug)]
pub(super) struct Request {
    /// The model's full name, as the client sent it.
    pub(super) model: String,
    pub(super) canonical: String,
    pub(super) directives: Directives,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) choices: u32,
    /// What `max_completion_tokens`, else `max_tokens`, says.
    pub(super) max_tokens: Option<u32>,
    /// The function to call instead of answering with text.
    pub(super) tool: Option<String>,
}

impl Request {
    /// Reads a body, with the directives of the header (which are the stronger ones).
    ///
    /// # Errors
    ///
    /// A 400 that says which field is at fault.
    pub(super) fn parse(body: &[u8], header: Directives) -> Result<Self, Refusal> {
        let body: Body = serde_json::from_slice(body).map_err(|error| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("the body cannot be read as a chat request: {error}"),
            )
        })?;
        let model =
            body.model.ok_or_else(|| Refusal::field("model", "the field `model` is missing"))?;
        let messages = body.messages.filter(|messages| !messages.is_empty()).ok_or_else(|| {
            Refusal::field("messages", "the field `messages` is missing or empty")
        })?;
        let (name, suffix) = model.split_once('?').unwrap_or((&model, ""));
        if name.is_empty() {
            return Err(Refusal::field("model", format!("the model `{model}` has no name")));
        }
        let suffix =
            Directives::parse(suffix).map_err(|message| Refusal::field("model", message))?;
        let tool = match body.tools.as_deref() {
            Some(tools) if !answers_a_tool(&messages) => choose_tool(tools, &body.tool_choice)?,
            _ => None,
        };
        Ok(Self {
            canonical: canonical(name, &messages),
            directives: header.or(suffix),
            stream: body.stream.unwrap_or(false),
            include_usage: body
                .stream_options
                .and_then(|options| options.include_usage)
                .unwrap_or(false),
            choices: within("n", body.n, 128)?.unwrap_or(1),
            max_tokens: within("max_completion_tokens", body.max_completion_tokens, MAX_TOKENS)?
                .or(within("max_tokens", body.max_tokens, MAX_TOKENS)?),
            tool,
            model,
        })
    }
}

fn within(field: &'static str, value: Option<u32>, most: u32) -> Result<Option<u32>, Refusal> {
    match value {
        Some(value) if !(1..=most).contains(&value) => {
            Err(Refusal::field(field, format!("`{field}` is {value}; allowed is 1 to {most}")))
        }
        _ => Ok(value),
    }
}

/// What decides the text; the rule stands in the docs of [`simulator`](super).
fn canonical(model: &str, messages: &[Message]) -> String {
    let mut canonical = format!("{model}\n");
    for message in messages {
        canonical.push_str(&message.role);
        canonical.push(':');
        match &message.content {
            Value::String(text) => canonical.push_str(text),
            Value::Array(parts) => {
                canonical.extend(
                    parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)),
                );
            }
            _ => {}
        }
        canonical.push('\n');
    }
    canonical
}

/// Whether the last word is a tool's: a tool message after the last message of the user.
fn answers_a_tool(messages: &[Message]) -> bool {
    messages
        .iter()
        .rev()
        .take_while(|message| message.role != "user")
        .any(|message| message.role == "tool")
}

fn choose_tool(tools: &[Value], choice: &Value) -> Result<Option<String>, Refusal> {
    if choice == "none" {
        return Ok(None);
    }
    let mut names = tools
        .iter()
        .filter(|tool| tool.get("type").is_some_and(|kind| kind == "function"))
        .filter_map(|tool| tool.pointer("/function/name").and_then(Value::as_str));
    match choice.pointer("/function/name").and_then(Value::as_str) {
        Some(wanted) if names.any(|name| name == wanted) => Ok(Some(wanted.to_owned())),
        Some(wanted) => {
            Err(Refusal::field("tool_choice", format!("`tools` has no function `{wanted}`")))
        }
        None => Ok(names.next().map(str::to_owned)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<Request, Refusal> {
        Request::parse(body.to_string().as_bytes(), Directives::default())
    }

    #[test]
    fn the_canonical_form_ignores_directives_and_joins_parts() {
        let request = parse(&json!({"model": "m?tokens=2", "messages": [
            {"role": "system", "content": null},
            {"role": "user", "content": [{"text": "a "}, {"type": "x"}, {"text": "b"}]},
            {"role": "assistant"},
        ]}));
        let request = request.unwrap();
        assert_eq!(request.canonical, "m\nsystem:\nuser:a b\nassistant:\n");
        assert_eq!(request.model, "m?tokens=2");
        assert_eq!(request.directives.tokens, Some(2));
    }

    #[test]
    fn a_tool_is_called_until_it_has_answered() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let ask = |messages: Value, choice: Value| {
            let tools = [tool("a"), tool("b")];
            let body =
                json!({"model": "m", "messages": messages, "tools": tools, "tool_choice": choice});
            parse(&body).map(|request| request.tool)
        };
        let user = json!({"role": "user", "content": "x"});
        let answer = json!({"role": "tool", "content": "y"});
        assert_eq!(ask(json!([user]), Value::Null).unwrap().as_deref(), Some("a"));
        assert_eq!(ask(json!([user]), tool("b")).unwrap().as_deref(), Some("b"));
        assert_eq!(ask(json!([user]), json!("none")).unwrap(), None);
        assert_eq!(ask(json!([user, answer]), Value::Null).unwrap(), None);
        assert_eq!(ask(json!([user, answer, user]), Value::Null).unwrap().as_deref(), Some("a"));
        assert!(ask(json!([user]), tool("c")).is_err());
    }

    #[test]
    fn a_wrong_request_names_its_field() {
        let messages = json!([{"role": "user", "content": "x"}]);
        for (body, field) in [
            (json!({"messages": messages}), "model"),
            (json!({"model": "?tokens=1", "messages": messages}), "model"),
            (json!({"model": "m?speed=1", "messages": messages}), "model"),
            (json!({"model": "m"}), "messages"),
            (json!({"model": "m", "messages": []}), "messages"),
            (json!({"model": "m", "messages": messages, "n": 0}), "n"),
            (json!({"model": "m", "messages": messages, "max_tokens": 0}), "max_tokens"),
        ] {
            assert_eq!(parse(&body).unwrap_err().body()["error"]["param"], field);
        }
    }
}
