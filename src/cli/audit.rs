//! The audit trail of the command line, and the file that a trail may have.

use std::{
    fmt::Display,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing_subscriber::fmt::MakeWriter;

use crate::{gateway::AUDIT, job::JobId};

/// Writes down what an operator did to a job.
pub(super) fn job(action: &str, job: JobId, is_changed: bool) {
    let (job, user) = (job.to_string(), user());
    let outcome = if is_changed { "done" } else { "nothing changed" };
    tracing::info!(target: AUDIT, action, by = "operator", user, job, "{outcome}");
}

/// Writes down what an operator did to something else: a key, a queue, a worker.
pub(super) fn other(action: &str, what: impl Display) {
    let (what, user) = (what.to_string(), user());
    tracing::info!(target: AUDIT, action, by = "operator", user, what, "done");
}

/// Who the environment says it is.
fn user() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok())
}

/// A file that lines are appended to. One that was moved away or deleted is made anew, so that whoever rotates it need
/// tell nobody.
pub(super) struct Appended {
    path: PathBuf,
    file: Mutex<File>,
}

impl Appended {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: Mutex::new(open(path)?) })
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its lines tell who uses what: they are for the operator alone.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.create(true).append(true).open(path)
}

/// Whether the path still leads to this file.
fn is_there(path: &Path, file: &File) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (Ok(there), Ok(held)) = (std::fs::metadata(path), file.metadata()) else {
            return false;
        };
        (there.dev(), there.ino()) == (held.dev(), held.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// A line on its way into the file.
pub(super) struct Line<'a> {
    path: &'a Path,
    file: MutexGuard<'a, File>,
}

impl<'a> MakeWriter<'a> for Appended {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { path: &self.path, file: self.lock() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !is_there(self.path, &self.file) {
            *self.file = open(self.path)?;
        }
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against a trail that goes on in a file that was rotated away.
    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).unwrap();
        let (path, old) = (folder.join("audit.log"), folder.join("audit.log.1"));
        let file = Appended::open(&path).unwrap();
        let say = |text: &str| file.make_writer().write_all(text.as_bytes()).unwrap();
        say("a\n");
        say("b\n");
        std::fs::rename(&path, &old).unwrap();
        say("c\n");
        std::fs::remove_file(&path).unwrap();
        say("d\n");
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(&old), read(&path)), ("a\nb\n".to_owned(), "d\n".to_owned()));
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &std::fs::metadata(&path).unwrap().permissions(),
            );
            assert_eq!(mode & 0o777, 0o600);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
