//! A progress bar, where a person may be watching.

use indicatif::{ProgressBar, ProgressStyle};

/// How far the input is read. Without a watcher it does nothing.
#[derive(Debug, Default)]
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// A bar over `size` bytes of input, or a counter where the size is not known.
    pub(super) fn new(watched: bool, size: Option<u64>) -> Self {
        if !watched {
            return Self::default();
        }
        let (bar, template) = match size {
            Some(size) => {
                (ProgressBar::new(size), "{bar:30} {bytes}/{total_bytes} {msg} [{elapsed_precise}]")
            }
            None => (ProgressBar::new_spinner(), "{spinner} {msg} [{elapsed_precise}]"),
        };
        Self(Some(match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }))
    }

    /// Shows how much of the input is read, and what has come of it.
    pub(super) fn show(&self, offset: u64, what: impl FnOnce() -> String) {
        if let Some(bar) = &self.0 {
            bar.set_position(offset);
            bar.set_message(what());
        }
    }

    /// Writes to the terminal without tearing the bar.
    pub(super) fn around<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
