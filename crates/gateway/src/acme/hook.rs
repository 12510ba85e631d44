//! The program that makes DNS records. It is called without a shell:
//!
//! * `PROGRAM present NAME VALUE` adds a TXT record and returns 0 once the name's own servers answer with it;
//! * `PROGRAM cleanup NAME VALUE` takes that record away again.
//!
//! Two values of one name are there at the same time. The last line that it says on standard error is told when it fails.
//! When its time is over, or nobody waits for it any more, it ends with all of its process group.

use super::broken;
use envforge_api::problem::Problem;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, Command},
    time::timeout,
};

/// How long it may take: some name servers take minutes.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// Octets at the end of what it says that are kept.
const TAIL: usize = 4 << 10;
/// How long the rest of what it said is waited for once it has ended: what it left behind may hold its standard error open.
const REST: Duration = Duration::from_secs(1);
/// Characters of its last word that are told.
const WORD: usize = 400;

const HINT: &str = "the hook program is yours: try it by hand with the same words";

/// What is asked of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    Present,
    Cleanup,
}

/// A record.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) value: String,
}

/// The program's whole path.
///
/// # Errors
/// When it cannot be run: said at the start rather than in two months.
pub(super) fn find(program: &Path) -> Result<PathBuf, Problem> {
    let found = std::path::absolute(program).and_then(|whole| {
        if !whole.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        rustix::fs::access(&whole, rustix::fs::Access::EXEC_OK)?;
        Ok(whole)
    });
    found.map_err(|error| {
        let hint = "give the path of an executable file with --acme-hook";
        Problem::invalid(format!("the hook {} cannot be run: {error}", program.display()), hint)
    })
}

/// # Errors
/// When it cannot be run, fails, or takes longer than `patience`.
pub(super) async fn call(program: &Path, ask: Ask, record: &Record, patience: Duration) -> Result<(), Problem> {
    let word = match ask {
        Ask::Present => "present",
        Ask::Cleanup => "cleanup",
    };
    let doing = format!("{word} the DNS record {} by {}", record.name, program.display());
    let mut command = Command::new(program);
    command.args([word, &record.name, &record.value]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|e| broken(&doing, e, HINT))?;
    // Made after the child, so dropped before it: until then nobody waits for it, and its number is nobody else's.
    let group = Group::of(&child);
    let mut said = Said { stderr: child.stderr.take(), last: Vec::new() };
    let ended = timeout(patience, async {
        loop {
            tokio::select! {
                status = child.wait() => break status,
                () = said.read(), if said.stderr.is_some() => {}
            }
        }
    })
    .await;
    let Ok(status) = ended else {
        return Err(broken(&doing, format!("it did not end within {} s", patience.as_secs()), HINT));
    };
    group.has_ended();
    let status = status.map_err(|e| broken(&doing, e, HINT))?;
    if status.success() {
        return Ok(());
    }
    Err(broken(&doing, format!("{status}: {}", said.last_word().await), HINT))
}

/// The process group of a call. It ends when this is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }

    /// Its leader was waited for: the number may be another's from now on.
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Gone already is as good.
        self.0.map(|group| kill_process_group(group, Signal::KILL));
    }
}

/// The end of what it says on standard error.
struct Said {
    /// Absent once everything is read.
    stderr: Option<ChildStderr>,
    last: Vec<u8>,
}

impl Said {
    /// Reads on, so that whoever says much is not held up.
    async fn read(&mut self) {
        let Some(stderr) = &mut self.stderr else { return };
        let mut chunk = [0; 1024];
        match stderr.read(&mut chunk).await {
            Ok(read @ 1..) => {
                self.last.extend_from_slice(&chunk[..read]);
                self.last.drain(..self.last.len().saturating_sub(TAIL));
            }
            Ok(0) | Err(_) => self.stderr = None,
        }
    }

    async fn last_word(mut self) -> String {
        let rest = async {
            while self.stderr.is_some() {
                self.read().await;
            }
        };
        drop(timeout(REST, rest).await);
        let said = String::from_utf8_lossy(&self.last);
        let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
        last.chars().filter(|c| !c.is_control()).take(WORD).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, time::Instant};

    fn hook(dir: &Path, script: &str) -> PathBuf {
        let (text, program) = (dir.join("text"), dir.join("hook"));
        fs::write(&text, format!("#!/bin/sh\ncd \"$(dirname \"$0\")\"\n{script}\n")).expect("written");
        // Copied by another program: what other threads start in this moment would hold a file that is being written
        // here, and a file that is held for writing cannot be run.
        let install = std::process::Command::new("install").args(["-m", "700"]).args([&text, &program]).status();
        assert!(install.expect("install runs").success());
        find(&program).expect("a program")
    }

    fn record() -> Record {
        Record { name: "_acme-challenge.dev.test".into(), value: "-a $(b)".into() }
    }

    #[tokio::test]
    async fn it_is_told_what_to_do_and_its_last_word_is_told_when_it_fails() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = "echo \"$@\" >> told\n[ \"$1\" = present ] || { echo first >&2; echo 'no zone' >&2; exit 3; }";
        let program = hook(dir.path(), script);
        call(&program, Ask::Present, &record(), PATIENCE).await.expect("presented");
        let failed = call(&program, Ask::Cleanup, &record(), PATIENCE).await.expect_err("it fails").message;
        assert!(
            failed.contains("no zone") && failed.contains("exit status: 3") && !failed.contains("first"),
            "{failed}"
        );
        let told = fs::read_to_string(dir.path().join("told")).expect("told");
        let words = |word: &str| format!("{word} _acme-challenge.dev.test -a $(b)\n");
        assert_eq!(told, words("present") + &words("cleanup"));
    }

    #[tokio::test]
    async fn however_much_it_says_and_whatever_it_leaves_behind_it_has_ended_when_it_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = hook(
            dir.path(),
            "sleep 1000 & echo $! > left\nhead -c 300000 /dev/zero >&2\necho >&2; echo enough >&2; exit $2",
        );
        let begun = Instant::now();
        for (status, told) in [("0", None), ("1", Some("enough"))] {
            let record = Record { name: status.into(), value: String::new() };
            let ended = call(&program, Ask::Present, &record, PATIENCE).await;
            // What this hook left behind is the test's to end.
            let left = fs::read_to_string(dir.path().join("left")).expect("left");
            let left = left.trim().parse().ok().and_then(Pid::from_raw).expect("a process");
            rustix::process::kill_process(left, Signal::KILL).expect("it goes on");
            assert_eq!(ended.is_err(), told.is_some());
            assert!(told.is_none_or(|told| ended.is_err_and(|problem| problem.message.ends_with(told))));
        }
        assert!(begun.elapsed() < PATIENCE / 2);
    }

    #[tokio::test]
    async fn one_that_hangs_or_is_not_waited_for_ends_with_all_that_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = hook(dir.path(), "sleep 1000 & echo $! > new && mv new started\nwait");
        let started = dir.path().join("started");
        let record = record();
        for given_up in [false, true] {
            let calling = call(&program, Ask::Present, &record, Duration::from_secs(if given_up { 600 } else { 2 }));
            if given_up {
                let seen = async {
                    while !started.exists() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    _ = calling => panic!("it hangs"),
                    () = seen => {}
                }
            } else {
                let told = calling.await.expect_err("it hangs").message;
                assert!(told.contains("within 2 s"), "{told}");
            }
            let pid = fs::read_to_string(&started).expect("it had started");
            fs::remove_file(&started).expect("for the next");
            let state = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            let begun = Instant::now();
            // Whoever adopted it may not have waited for it yet.
            while state().contains("(sleep)") && !state().contains("(sleep) Z") {
                assert!(begun.elapsed() < Duration::from_secs(60), "it goes on");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[test]
    fn one_that_cannot_be_run_is_refused_at_the_start() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("plain"), "").expect("written");
        for (name, why) in [("none", "No such file"), (".", "not a file"), ("plain", "denied")] {
            let problem = find(&dir.path().join(name)).expect_err("refused");
            assert!(problem.message.contains(why) && problem.hint.contains("--acme-hook"), "{problem}");
        }
    }
}
