//! `port-forward` as someone at a terminal runs it: what it listens on, what it says, and how it ends.

use crate::local::PATIENCE;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

/// One that listens; ends with this.
#[derive(Debug)]
pub struct Forward {
    child: Child,
    /// What it said once it listened.
    pub told: serde_json::Value,
    said: Receiver<String>,
    before: Vec<String>,
}

impl Forward {
    /// Starts a command line with `--json`, and waits until it listens.
    ///
    /// # Panics
    /// When it ends instead.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let (send, said) = channel();
        let errors = BufReader::new(child.stderr.take().expect("piped")).lines();
        // Ends with the program.
        std::thread::spawn(move || errors.map_while(Result::ok).try_for_each(|line| send.send(line)));
        let line = BufReader::new(child.stdout.take().expect("piped")).lines().next();
        let Some(Ok(line)) = line else { panic!("it ended: {:?}", said.iter().collect::<Vec<_>>()) };
        let told = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
        Self { child, told, said, before: Vec::new() }
    }

    /// The port on 127.0.0.1.
    ///
    /// # Panics
    /// When it told none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.told["local_port"].as_u64().and_then(|port| port.try_into().ok()).expect("a port")
    }

    /// Waits until it says something with this in it.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_said(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.said.recv_timeout(left).unwrap_or_else(|_| panic!("never said {what}: {:?}", self.before));
            let found = line.contains(what);
            self.before.push(line);
            if found {
                return;
            }
        }
    }

    /// Presses Ctrl-C; its status.
    ///
    /// # Panics
    /// When it is gone already.
    pub fn interrupt(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        kill(pid, Signal::SIGINT).expect("it runs");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
