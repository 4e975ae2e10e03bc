//! Worker processes, to be killed.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use super::{Error, folder::Folder};
use crate::config::{self, Config};

/// Running worker processes. All end with this value, by SIGKILL.
#[derive(Debug)]
pub(super) struct Fleet {
    program: PathBuf,
    variables: Vec<(String, String)>,
    members: HashMap<String, Child>,
    /// Killed, perhaps not yet gone.
    dead: Vec<Child>,
    hired: u32,
    folder: Folder,
}

impl Fleet {
    /// A fleet of processes of `program`, each with this configuration and no other.
    pub(super) fn new(program: &Path, config: &Config) -> Result<Self, Error> {
        Ok(Self {
            program: program.to_owned(),
            variables: config::variables(config),
            members: HashMap::new(),
            dead: Vec::new(),
            hired: 0,
            folder: Folder::new()?,
        })
    }

    /// Starts a process, whose name begins with `role`.
    pub(super) fn hire(&mut self, role: &str, concurrency: usize) -> Result<(), Error> {
        self.dead.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        self.hired += 1;
        let name = format!("{role}-{}", self.hired);
        let path = self.log(&name);
        let log = File::create(&path).map_err(|source| Error::Folder { path, source })?;
        let child = Command::new(&self.program)
            .args(["--name", &name, "--concurrency", &concurrency.to_string()])
            .current_dir(self.folder.path())
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for this process, which ends the others when it needs them no more.
            .process_group(0)
            .spawn()
            .map_err(|source| Error::Program { program: self.program.clone(), source })?;
        self.members.insert(name, child);
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// Kills the process behind this worker's ID if it has this role, and says when; `None` for
    /// any other.
    pub(super) fn kill(&mut self, role: &str, worker: &str) -> Result<Option<Instant>, Error> {
        self.check()?;
        // An ID is the name and the incarnation's own mark.
        let name = worker.rsplit_once('-').map_or(worker, |(name, _)| name);
        if !Self::has_role(role, name) {
            return Ok(None);
        }
        let Some(mut child) = self.members.remove(name) else { return Ok(None) };
        let killed = Instant::now();
        child.kill().map_err(|source| Error::Program { program: self.program.clone(), source })?;
        self.dead.push(child);
        Ok(Some(killed))
    }

    /// Whether a worker of this ID or name has this role.
    pub(super) fn has_role(role: &str, worker: &str) -> bool {
        worker.strip_prefix(role).is_some_and(|rest| rest.starts_with('-'))
    }

    /// Fails where a process has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        let ended = |(name, child): (&String, &mut Child)| {
            (!matches!(child.try_wait(), Ok(None))).then(|| name.clone())
        };
        let Some(name) = self.members.iter_mut().find_map(ended) else { return Ok(()) };
        let log = fs::read_to_string(self.log(&name)).unwrap_or_default();
        let said = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing");
        Err(Error::Ended { said: said.to_owned(), name: format!("worker {name}") })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let members = self.members.drain().map(|(_, child)| child);
        let mut all: Vec<Child> = members.chain(self.dead.drain(..)).collect();
        for child in &mut all {
            let _ = child.kill();
        }
        for child in &mut all {
            let _ = child.wait();
        }
    }
}
