//! Where a command writes. Text that others wrote passes through [`clean`] on every way to a terminal.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use super::{clean, logging::json_line};
use crate::config::LogFormat;

/// Standard output and standard error, or what stands for them.
pub struct Terminal {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    is_watched: bool,
    /// How lines for people are written.
    format: LogFormat,
    /// Only errors are told.
    quiet: bool,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

impl Terminal {
    /// This process's own; colours are left out where they cannot be shown.
    pub fn standard() -> Self {
        Self {
            out: Box::new(anstream::stdout()),
            err: Box::new(anstream::stderr()),
            is_watched: io::stderr().is_terminal(),
            format: LogFormat::Text,
            quiet: false,
        }
    }

    /// Other writers, as in tests.
    pub fn new(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self { out, err, is_watched: false, format: LogFormat::Text, quiet: false }
    }

    /// Writes lines for people as the log is written, and, where it is to be quiet, only errors.
    pub(super) fn speak(&mut self, format: LogFormat, quiet: bool) {
        (self.format, self.quiet) = (format, quiet);
        self.is_watched &= format == LogFormat::Text && !quiet;
    }

    /// Whether a person may be watching standard error.
    pub(super) fn is_watched(&self) -> bool {
        self.is_watched
    }

    /// Standard output.
    pub(super) fn out(&mut self) -> &mut dyn Write {
        &mut *self.out
    }

    /// One line on standard output, whatever the text holds.
    pub(super) fn line(&mut self, line: impl fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{}", clean::one_line(&line))
    }

    /// Lines on standard output, as many as the text has.
    pub(super) fn lines(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", clean::many_lines(text))
    }

    /// A JSON object on one line of standard output.
    pub(super) fn json(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        writeln!(self.out, "{}", clean::json(&serde_json::to_string(value)?))
    }

    /// A JSON object on many lines of standard output.
    pub(super) fn pretty_json(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        writeln!(self.out, "{}", clean::json(&serde_json::to_string_pretty(value)?))
    }

    /// Part of a text on standard output, at once.
    pub(super) fn show(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(clean::many_lines(text).as_bytes())?;
        self.out.flush()
    }

    /// One line for people, on standard error.
    pub(super) fn say(&mut self, line: impl fmt::Display) {
        if !self.quiet {
            self.tell("INFO", "", line);
        }
    }

    /// A warning for people, on standard error.
    pub(super) fn warn(&mut self, line: impl fmt::Display) {
        if !self.quiet {
            self.tell("WARN", "\x1b[1;33mwarning:\x1b[0m ", line);
        }
    }

    /// What went wrong, on standard error.
    pub(super) fn fail(&mut self, line: impl fmt::Display) {
        self.tell("ERROR", "\x1b[1;31merror:\x1b[0m ", line);
    }

    /// Writes a line at once. Nobody listens where it cannot be written.
    fn tell(&mut self, level: &str, prefix: &str, line: impl fmt::Display) {
        let line = match self.format {
            LogFormat::Text => format!("{prefix}{}\n", clean::one_line(&line)),
            LogFormat::Json => json_line(level, line),
        };
        let _ = self.err.write_all(line.as_bytes());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was written, to be read by a test.
    #[derive(Debug, Clone, Default)]
    pub(in crate::cli) struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        pub(in crate::cli) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A terminal that a test reads: the terminal, its output, its errors.
    pub(in crate::cli) fn paper() -> (Terminal, Paper, Paper) {
        let (out, err) = (Paper::default(), Paper::default());
        (Terminal::new(Box::new(out.clone()), Box::new(err.clone())), out, err)
    }
}
