//! The one door for foreign text: what others wrote reaches a terminal, a pipe or a log harmless.
//!
//! A terminal obeys control characters: text with escape sequences can clear the screen, fill the clipboard or
//! write over what stands there; a newline forges a line, through a pipe too; characters that turn the
//! direction of text hide what it says. Each such character is shown as its escape instead.

use std::fmt::{self, Write};

/// Whether a character does something to the text around it. Newlines and tabs are among them.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes text on one line: all control characters escaped.
pub(super) struct OneLine<W>(pub(super) W);

/// Writes text of many lines: control characters escaped, but for newlines and tabs.
pub(super) struct ManyLines<W>(pub(super) W);

impl<W: Write> Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(&mut self.0, text, is_control)
    }
}

impl<W: Write> Write for ManyLines<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(&mut self.0, text, |c| is_control(c) && !matches!(c, '\n' | '\t'))
    }
}

fn escape(out: &mut impl Write, text: &str, is_harmful: impl Fn(char) -> bool) -> fmt::Result {
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_harmful(*c)) {
        write!(out, "{}{}", &rest[..at], c.escape_default())?;
        rest = &rest[at + c.len_utf8()..];
    }
    out.write_str(rest)
}

/// Text on one line.
pub(super) fn one_line(text: &impl fmt::Display) -> String {
    let mut line = OneLine(String::new());
    let _ = write!(line, "{text}");
    line.0
}

/// Text of many lines.
pub(super) fn many_lines(text: &str) -> String {
    let mut lines = ManyLines(String::new());
    let _ = lines.write_str(text);
    lines.0
}

/// JSON text in which strings hold no control character, and which means the same: what JSON itself does
/// not demand to be escaped. Newlines and tabs between values stay.
pub(super) fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Characters that are not escaped stand in strings, and all of them have four digits.
        if is_control(c) && !c.is_ascii_whitespace() {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\x1b]52;c;eA==\x07b\r\n# line 2\tc\u{9b}2J\u{202e}d\u{7f}é😀";

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(
            one_line(&EVIL),
            r"a\u{1b}]52;c;eA==\u{7}b\r\n# line 2\tc\u{9b}2J\u{202e}d\u{7f}é😀"
        );
        assert_eq!(
            many_lines(EVIL),
            "a\\u{1b}]52;c;eA==\\u{7}b\\r\n# line 2\tc\\u{9b}2J\\u{202e}d\\u{7f}é😀"
        );
    }

    #[test]
    fn json_means_the_same_and_holds_no_control_character() {
        let text = json(&serde_json::to_string(&serde_json::json!({ EVIL: EVIL })).unwrap());
        assert!(!text.contains(is_control), "{text}");
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back[EVIL], EVIL);
    }
}
