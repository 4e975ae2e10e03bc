//! How far it is: a bar where a person may be watching, a line every so often elsewhere.

use std::{collections::VecDeque, fmt::Write as _, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::report::Tally;

/// How often the bar is drawn.
const REDRAW: Duration = Duration::from_millis(500);
/// Over how much time, at most, the rate is measured.
const WINDOW: Duration = Duration::from_secs(60);

/// Tells how far it is.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    /// Bytes of input in all, where that is known.
    size: Option<u64>,
    /// Bytes and lines that are read.
    read: (u64, u64),
    /// Whether the input is over.
    is_read: bool,
    /// Whether jobs count once they are over, and not once they are enqueued.
    waits: bool,
    every: Duration,
    next: Instant,
    /// How many jobs counted when.
    marks: VecDeque<(Instant, u64)>,
}

impl Progress {
    /// Of input of `size` bytes, where that is known. A watcher sees a bar, others a line `every` so often.
    pub(super) fn new(watched: bool, waits: bool, size: Option<u64>, every: Duration) -> Self {
        let bar = watched.then(|| {
            let bar = ProgressBar::new_spinner();
            match ProgressStyle::with_template("{bar:20} {msg} [{elapsed_precise}]") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        let every = if watched { REDRAW } else { every };
        let now = Instant::now();
        let (read, marks) = ((0, 0), VecDeque::from([(now, 0)]));
        Self { bar, size, read, is_read: false, waits, every, next: now + every, marks }
    }

    /// Notes that a line was read, which ends at this byte.
    pub(super) fn read(&mut self, offset: u64) {
        self.read = (offset, self.read.1 + 1);
    }

    /// Notes that the input is over.
    pub(super) fn all_read(&mut self) {
        self.is_read = true;
    }

    /// When there is something to tell next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Redraws the bar; without one, the line to be written.
    pub(super) fn tick(&mut self, tally: &Tally) -> Option<String> {
        let now = Instant::now();
        self.next = now + self.every;
        let (done, all) = (self.counted(tally), self.all());
        self.marks.push_back((now, done));
        while self.marks.len() > 2 && now - self.marks[0].0 > WINDOW {
            self.marks.pop_front();
        }
        let text = self.text(tally, done, all);
        let Some(bar) = &self.bar else { return Some(text) };
        if let Some(all) = all {
            bar.set_length(all);
        }
        bar.set_position(done);
        bar.set_message(text);
        None
    }

    /// What counts as done.
    fn counted(&self, tally: &Tally) -> u64 {
        tally.refused + if self.waits { tally.ended } else { tally.enqueued }
    }

    /// Lines in all, as far as the bytes that are read tell.
    fn all(&self) -> Option<u64> {
        let (bytes, lines) = self.read;
        match self.size {
            _ if self.is_read => Some(lines),
            Some(size) if bytes > 0 => {
                let all = u128::from(lines) * u128::from(size.max(bytes)) / u128::from(bytes);
                u64::try_from(all).ok()
            }
            _ => None,
        }
    }

    fn text(&self, tally: &Tally, done: u64, all: Option<u64>) -> String {
        let about = if self.is_read { "" } else { "about " };
        let of = all.map(|all| format!(" of {about}{all}")).unwrap_or_default();
        let word = if self.waits { "over" } else { "enqueued" };
        let mut text = format!("{}{of} {word}", done - tally.refused);
        for (count, what) in [(tally.failed, "failed"), (tally.refused, "refused")] {
            if count > 0 {
                let _ = write!(text, ", {count} {what}");
            }
        }
        if self.waits {
            let _ = write!(text, ", {} waited for", tally.enqueued - tally.ended);
        }
        if let Some(rate) = self.rate() {
            let _ = write!(text, ", {rate:.1} a second");
            let left = all.map_or(0, |all| all.saturating_sub(done));
            if left > 0 {
                #[expect(clippy::cast_precision_loss, reason = "an estimate")]
                let seconds = (left as f64 / rate).min(1e9);
                let time = Duration::from_secs_f64(seconds.ceil());
                let time = humantime_serde::re::humantime::format_duration(time);
                let _ = write!(text, ", {time} left");
            }
        }
        if tally.tokens > 0 {
            let _ = write!(text, ", {} tokens", tally.tokens);
        }
        text
    }

    /// Jobs a second; `None` while none has come.
    fn rate(&self) -> Option<f64> {
        let ((began, before), (now, done)) = (self.marks.front()?, self.marks.back()?);
        let seconds = now.duration_since(*began).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = (done - before) as f64 / seconds;
        (rate.is_finite() && rate > 0.0).then_some(rate)
    }

    /// Writes to the terminal without tearing the bar.
    pub(super) fn around<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against a bar that shows how much of the input is read, which says nothing of answers.
    #[tokio::test(start_paused = true)]
    async fn it_tells_of_answers_and_not_of_bytes_read() {
        let mut progress = Progress::new(false, true, Some(1000), Duration::from_secs(10));
        (1..=50).for_each(|line| progress.read(line * 10));
        let mut tally = Tally { enqueued: 50, ..Tally::default() };
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(progress.next(), Instant::now());
        assert_eq!(progress.tick(&tally).unwrap(), "0 of about 100 over, 50 waited for");
        tally = Tally { enqueued: 50, ended: 20, failed: 2, tokens: 640, ..tally };
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(
            progress.tick(&tally).unwrap(),
            "20 of about 100 over, 2 failed, 30 waited for, 1.0 a second, 1m 20s left, 640 tokens"
        );
        progress.all_read();
        tally = Tally { ended: 50, ..tally };
        assert!(
            progress.tick(&tally).unwrap().starts_with("50 of 50 over, 2 failed, 0 waited for")
        );
        let mut progress = Progress::new(false, false, None, Duration::from_secs(10));
        progress.read(10);
        let tally = Tally { enqueued: 3, refused: 1, ..Tally::default() };
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(progress.tick(&tally).unwrap(), "3 enqueued, 1 refused, 1.0 a second");
    }
}
