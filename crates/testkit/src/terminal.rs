//! A person at a terminal: a command line on a pseudo-terminal of its own (by `script`, which every Debian has).

use crate::local::{Local, PATIENCE};
use std::{
    io::{Read, Write},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

/// A running command line and what it has drawn.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    stdin: ChildStdin,
    chunks: Receiver<Vec<u8>>,
    seen: String,
}

impl Local {
    /// Starts a command line on a terminal.
    ///
    /// # Panics
    /// When `script` cannot be run.
    #[must_use]
    pub fn terminal(&self, args: &[&str]) -> Terminal {
        Terminal::start(&self.command(args))
    }
}

impl Terminal {
    pub(crate) fn start(line: &std::process::Command) -> Self {
        let words: Vec<_> =
            std::iter::once(line.get_program()).chain(line.get_args()).map(|w| w.to_string_lossy()).collect();
        let mut command = std::process::Command::new("script");
        command.args(["-qec", &words.join(" "), "/dev/null"]).env("TERM", "xterm-256color");
        for (name, value) in line.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("script runs");
        let (stdin, mut stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (send, chunks) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, stdin, chunks, seen: String::new() }
    }

    /// Waits until the screen has shown `text` since the last thing that was waited for.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.seen.push_str(&String::from_utf8_lossy(&chunk)),
                Err(_) => panic!("{text:?} was never shown; the rest of the screen: {:?}", self.seen),
            }
        }
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_in(&mut self, keys: &str) {
        self.stdin.write_all(keys.as_bytes()).and_then(|()| self.stdin.flush()).expect("the terminal is there");
    }

    /// Whether it is still open.
    ///
    /// # Panics
    /// When the system does not say.
    #[must_use]
    pub fn is_open(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }

    /// Detaches from tmux, by its command (a terminal that answers no questions makes tmux forget a prefix key that is
    /// typed in its first second), and waits for the end; the exit status.
    ///
    /// # Panics
    /// When it does not end by itself.
    #[must_use]
    pub fn detach(mut self) -> Option<i32> {
        self.type_in("tmux detach\n");
        self.wait_for("[detached");
        self.child.wait().expect("it ends").code()
    }
}
