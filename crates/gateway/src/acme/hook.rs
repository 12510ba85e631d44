//! The program that makes DNS records. It is called without a shell:
//!
//! * `PROGRAM present NAME VALUE` adds a TXT record and returns 0 once the name's own servers answer with it;
//! * `PROGRAM cleanup NAME VALUE` takes that record away again.
//!
//! Two values of one name are there at the same time. What it says on standard error is told when it fails.

use super::broken;
use envforge_api::problem::Problem;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

/// How long it may take: some name servers take minutes.
const PATIENCE: Duration = Duration::from_secs(600);
/// Octets of what it says that are kept.
const MOST: u64 = 64 << 10;

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

/// # Errors
/// When it cannot be run, fails, or takes too long.
pub(super) async fn call(program: &Path, ask: Ask, record: &Record) -> Result<(), Problem> {
    let word = match ask {
        Ask::Present => "present",
        Ask::Cleanup => "cleanup",
    };
    let doing = format!("{word} the DNS record {} by {}", record.name, program.display());
    let hint = "the hook program is yours: try it by hand with the same words";
    let mut command = Command::new(program);
    command.args([word, &record.name, &record.value]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| broken(&doing, e, hint))?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let mut said = Vec::new();
    let ended = timeout(PATIENCE, async {
        if let Some(stderr) = child.stderr.take() {
            // As long as something of it may speak; more than that is not kept, and blocks it until the time is over.
            stderr.take(MOST).read_to_end(&mut said).await?;
        }
        child.wait().await
    })
    .await;
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => {
            let said = String::from_utf8_lossy(&said);
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            Err(broken(&doing, format!("{status}: {last}"), hint))
        }
        Ok(Err(error)) => Err(broken(&doing, error, hint)),
        Err(_) => {
            // Gone already is as good; what it started goes with it.
            group.map(|group| kill_process_group(group, Signal::KILL));
            Err(broken(&doing, format!("it did not end within {} s", PATIENCE.as_secs()), hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn it_is_told_what_to_do_and_its_last_word_is_told_when_it_fails() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("hook");
        let script = "#!/bin/sh\necho \"$@\" >> \"$(dirname \"$0\")/told\"\n[ \"$1\" = present ] || { echo 'no zone' >&2; exit 3; }\n";
        std::fs::write(&program, script).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("made a program");
        let record = Record { name: "_acme-challenge.dev.test".into(), value: "-a b".into() };
        call(&program, Ask::Present, &record).await.expect("presented");
        let failed = call(&program, Ask::Cleanup, &record).await.expect_err("it fails").message;
        assert!(failed.contains("no zone") && failed.contains("exit status: 3"), "{failed}");
        let told = std::fs::read_to_string(dir.path().join("told")).expect("told");
        assert_eq!(told, "present _acme-challenge.dev.test -a b\ncleanup _acme-challenge.dev.test -a b\n");
        let missing = call(&dir.path().join("none"), Ask::Present, &record).await.expect_err("none").message;
        assert!(missing.contains("none"), "{missing}");
    }
}
