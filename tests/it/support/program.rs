//! The real binaries, as a person would run them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

pub const MILLSTREAM: &str = env!("CARGO_BIN_EXE_millstream");
pub const PRODUCER: &str = env!("CARGO_BIN_EXE_millstream-producer");
pub const GATEWAY: &str = env!("CARGO_BIN_EXE_millstream-gateway");
pub const WORKER: &str = env!("CARGO_BIN_EXE_millstream-worker");

/// A new empty folder, gone with this value.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("millstream-run-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A program with nothing of the caller's environment but what finds it.
pub fn command(program: &str, args: &[&str], env: &[(&str, &str)], folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).env_clear();
    for name in ["PATH", "HOME", "LLVM_PROFILE_FILE"] {
        if let Ok(value) = std::env::var(name) {
            command.env(name, value);
        }
    }
    // Whoever serves the web takes any port that is free.
    command.env("PORT", "0").envs(env.iter().copied()).stdin(Stdio::null());
    command
}

/// Runs a program to its end, with this input.
pub fn run_with(program: &str, args: &[&str], env: &[(&str, &str)], input: &[u8]) -> Ran {
    let folder = Folder::new();
    let mut child = command(program, args, env, folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A program that refuses its arguments closes its input unread.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs a program to its end.
pub fn run(program: &str, args: &[&str], env: &[(&str, &str)]) -> Ran {
    run_with(program, args, env, b"")
}

/// A program in the background; killed with this value.
pub struct Running {
    pub child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    said: Vec<String>,
    _folder: Folder,
}

impl Running {
    pub fn start(program: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let mut command = command(program, args, env, folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Self::spawn(command, folder)
    }

    /// Starts a command whose standard error tells how it is.
    pub fn spawn(mut command: Command, folder: Folder) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, said: Vec::new(), _folder: folder }
    }

    /// Waits until it says this.
    pub fn wait_for(&mut self, words: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("never said `{words}`, but: {:#?}", self.said);
            };
            self.said.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Bytes of memory that it holds.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end; the exit code and everything that it said.
    pub fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        let mut said = std::mem::take(&mut self.said);
        said.extend(self.lines.iter());
        (code, said.join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
