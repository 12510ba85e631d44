//! The short-lived child that makes namespaces, and the words exchanged with it.

use super::{DOING, Result, SystemError};
use crate::system::enter;
use std::{io, process::Stdio};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
};

/// It is killed when this is dropped before its end.
#[derive(Debug)]
pub(super) struct Helper {
    /// Its number.
    pub(super) pid: u32,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: ChildStderr,
}

impl Helper {
    /// `envforge enter <mode> <plan>`.
    pub(super) fn start(mode: &str, plan: &str) -> Result<Self> {
        let mut child = tokio::process::Command::new(enter::own_binary()?)
            .args(["enter", mode, plan])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| SystemError::new(DOING, e))?;
        match (child.stdin.take(), child.stdout.take(), child.stderr.take(), child.id()) {
            (Some(stdin), Some(stdout), Some(stderr), Some(pid)) => {
                Ok(Self { pid, child, stdin, lines: BufReader::new(stdout).lines(), stderr })
            }
            _ => Err(SystemError::new(DOING, io::Error::other("the helper process has no pipes"))),
        }
    }

    /// The next line, which begins with `word`; else what it says on standard error is the reason.
    pub(super) async fn expect(&mut self, word: &str) -> Result<String> {
        if let Ok(Some(line)) = self.lines.next_line().await
            && line.split(' ').next() == Some(word)
        {
            return Ok(line);
        }
        let mut said = String::new();
        let _ = self.stderr.read_to_string(&mut said).await;
        let first = said.lines().next().unwrap_or("the helper process ended without a word");
        Err(SystemError::new(DOING, io::Error::other(first.trim_start_matches("envforge: ").to_owned())))
    }

    pub(super) async fn say(&mut self, word: &str) -> Result<()> {
        self.stdin.write_all(format!("{word}\n").as_bytes()).await.map_err(|e| SystemError::new(DOING, e))
    }

    /// Lets it go and waits until it is gone.
    pub(super) async fn end(mut self) -> Result<()> {
        drop(self.stdin);
        self.child.wait().await.map(drop).map_err(|e| SystemError::new(DOING, e))
    }
}
