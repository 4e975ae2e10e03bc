//! One answer with everything about it decided: what is said, how fast, and what goes wrong.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::directives::MAX_TOKENS;
use super::fault::Fault;
use super::request::Request;
use super::tally::Attempts;
use super::text::Text;
use super::wire::{FINGERPRINT, Refusal, Usage, Vendor};
use super::{Options, wire};

/// What is said before the text when a request asks for extra fields.
pub(super) const REASONING: [&str; 3] = ["thinking", " about", " it"];

/// No answer takes longer: keeps a rate next to zero within what a timer can hold.
const LONGEST: Duration = Duration::from_hours(30 * 24);

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    text: Text,
    pub(super) choices: u32,
    /// Per choice.
    pub(super) tokens: u32,
    pub(super) burst: u32,
    finish: &'static str,
    /// The function that is called instead of answering with text.
    pub(super) tool: Option<String>,
    pub(super) include_usage: bool,
    pub(super) extra: bool,
    pub(super) fault: Option<Fault>,
    prompt_tokens: u64,
    ttft: Duration,
    rate: f64,
}

impl Answer {
    /// Decides the answer, and counts the request as one more attempt.
    ///
    /// # Errors
    ///
    /// A 400 when the choices together would be longer than [`MAX_TOKENS`].
    pub(super) fn decide(
        request: Request,
        options: &Options,
        attempts: &Attempts,
    ) -> Result<Self, Refusal> {
        let directives = request.directives;
        let tokens = directives.tokens.or(request.max_tokens).unwrap_or(options.tokens);
        if tokens.saturating_mul(request.choices) > MAX_TOKENS {
            let message = format!(
                "{tokens} tokens for `n` = {} are too many; allowed are {MAX_TOKENS} in all",
                request.choices
            );
            return Err(Refusal::field("n", message));
        }
        let text = Text::of(&request.canonical);
        let attempt = attempts.next(text.seed());
        let limited = directives.tokens.is_none() && request.max_tokens.is_some();
        Ok(Self {
            id: format!("chatcmpl-{}", uuid::Uuid::now_v7().simple()),
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            text: if options.vary { text.at_attempt(attempt) } else { text },
            choices: request.choices,
            tokens,
            burst: directives.burst.unwrap_or(1),
            finish: if limited { "length" } else { "stop" },
            include_usage: request.include_usage,
            extra: directives.extra.unwrap_or(false),
            fault: directives.fault.or(options.fault).filter(|fault| fault.hits(attempt)),
            prompt_tokens: request.canonical.split_whitespace().count() as u64,
            ttft: directives.ttft.unwrap_or(options.ttft).min(LONGEST),
            rate: directives.rate.unwrap_or(options.rate),
            tool: request.tool,
            model: if directives.alias == Some(true) {
                format!("{}-0", request.model.split('?').next().unwrap_or_default())
            } else {
                request.model
            },
        })
    }

    /// When token `index` is due, counted from the request's arrival.
    pub(super) fn due(&self, index: u32) -> Duration {
        if self.rate > 0.0 {
            let spoken =
                Duration::try_from_secs_f64(f64::from(index) / self.rate).unwrap_or(LONGEST);
            self.ttft.saturating_add(spoken.min(LONGEST))
        } else {
            self.ttft
        }
    }

    pub(super) fn text(&self, choice: u32) -> Text {
        self.text.for_choice(choice)
    }

    pub(super) fn call_id(&self, choice: u32) -> String {
        format!("call_{:08x}", self.text(choice).seed() >> 32)
    }

    /// Why the answer ends.
    pub(super) fn finish(&self) -> &'static str {
        if self.tool.is_some() { "tool_calls" } else { self.finish }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage::counted(self.prompt_tokens, u64::from(self.tokens) * u64::from(self.choices))
    }

    pub(super) fn vendor(&self) -> Option<Vendor> {
        self.extra.then_some(Vendor { kept: true })
    }

    /// The tokens `from..until` of a tool call's arguments: the text as the one field of a JSON
    /// object.
    pub(super) fn arguments(&self, choice: u32, from: u32, until: u32) -> String {
        // The words hold nothing that JSON would escape.
        let opening = if from == 0 { "{\"input\": \"" } else { "" };
        let ending = if until == self.tokens { "\"}" } else { "" };
        format!("{opening}{}{ending}", self.text(choice).piece(from, until))
    }

    /// The whole answer as one `chat.completion` object.
    pub(super) fn completion(&self) -> Value {
        let choices: Vec<Value> = (0..self.choices)
            .map(|index| {
                let (message, why) = (self.message(index), self.finish());
                json!({"index": index, "message": message, "logprobs": null, "finish_reason": why})
            })
            .collect();
        let mut completion = json!({
            "id": self.id, "object": "chat.completion", "created": self.created,
            "model": self.model, "system_fingerprint": FINGERPRINT,
            "choices": choices, "usage": self.usage(),
        });
        if let (Some(vendor), Some(fields)) = (self.vendor(), completion.as_object_mut()) {
            fields.insert("x_vendor".to_owned(), json!(vendor));
        }
        completion
    }

    fn message(&self, choice: u32) -> Value {
        let mut message = if let Some(name) = &self.tool {
            let arguments = self.arguments(choice, 0, self.tokens);
            let call = wire::ToolCall {
                index: None,
                id: Some(&self.call_id(choice)),
                kind: Some("function"),
                function: wire::Function { name: Some(name), arguments: &arguments },
            };
            json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": [call]})
        } else {
            let text = self.text(choice).piece(0, self.tokens);
            json!({"role": "assistant", "content": text, "refusal": null})
        };
        if let (true, Some(fields)) = (self.extra, message.as_object_mut()) {
            fields.insert("reasoning_content".to_owned(), json!(REASONING.concat()));
        }
        message
    }
}
