//! Finding the local installation running, or starting its keeper and waiting for its word.
//!
//! Every command line call comes through here, so the usual answer costs four small files and a lock probe.

use super::{
    LocalServer,
    keeper::make_home,
    log,
    paths::{Paths, Programs},
    program::{broken, read_address},
    state::{Named, PartState, Phase, Record, keeper_lives},
};
use envforge_api::{
    client::Endpoint,
    problem::{Problem, ProblemKind},
    secret::Secret,
};
use std::{fs, process::Stdio, time::Duration};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

/// Longest wait for a start. A first start makes a database; a slow disk needs its time.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a control plane that ended may take to come back before the caller is told.
const RECOVERY: Duration = Duration::from_secs(30);
/// The same on a full disk, where it comes back only when there is space again.
const RECOVERY_WITHOUT_SPACE: Duration = Duration::from_secs(10);
/// How often a keeper is started when another one always got there first and then ended.
const ATTEMPTS: u32 = 3;

/// Variables of the caller that the installation keeps. Everything else (tokens above all) stays with the caller.
const KEPT: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TZ",
    "TMPDIR",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

fn is_kept(name: &str) -> bool {
    let of_the_caller = ["SERVER", "TOKEN", "ORG", "PROJECT", "WORKSPACE"];
    KEPT.contains(&name)
        || name.starts_with("LC_")
        || name.starts_with("GIT_SSL_")
        || ["http_proxy", "https_proxy", "all_proxy", "no_proxy"].contains(&name.to_ascii_lowercase().as_str())
        || name.strip_prefix("ENVFORGE_").is_some_and(|rest| !of_the_caller.contains(&rest))
}

/// See [`super::ensure`].
pub(super) async fn ensure(paths: &Paths, programs: &Programs, say: &dyn Fn(&str)) -> Result<LocalServer, Problem> {
    if let Some(server) = running(paths) {
        return Ok(server);
    }
    make_home(paths).map_err(|error| broken(&format!("make {}", paths.home().display()), &error))?;
    let begun = Instant::now();
    let mut waiting = Waiting { spawned: None, attempts: 0, seen: None };
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(server) = running(paths) {
            return Ok(LocalServer { started: waiting.is_ours(paths), ..server });
        }
        let without_space = begun.elapsed() > RECOVERY_WITHOUT_SPACE && log::has_no_space(paths.home());
        if waiting.look(paths, programs, say)? == Look::Recovering && (without_space || begun.elapsed() > RECOVERY) {
            return Err(control_is_down(paths, without_space));
        }
        if begun.elapsed() > PATIENCE {
            return Err(Problem::new(
                ProblemKind::Timeout,
                format!("the local installation was not ready within {} seconds", PATIENCE.as_secs()),
                format!(
                    "`envforge local status` shows what it waits for; the log is {}",
                    paths.log("keeper").display()
                ),
            ));
        }
        sleep(pause).await;
        pause = (pause * 5 / 4).min(Duration::from_millis(25));
    }
}

/// The server, if a keeper lives and its control plane runs.
pub(super) fn running(paths: &Paths) -> Option<LocalServer> {
    let record = Record::read(paths)?;
    let control = record.part("control")?;
    if record.phase != Phase::Ready || control.state != PartState::Running {
        return None;
    }
    let address = read_address(paths)?;
    let token = Secret::new(fs::read_to_string(paths.owner_token()).ok()?.trim().to_owned());
    if !record.keeper.lives() || !keeper_lives(paths) {
        return None;
    }
    let endpoint = Endpoint::Http { host: address.ip().to_string(), port: address.port() };
    Some(LocalServer { endpoint, token, started: false })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// A keeper is starting, or one that is about to end must end first.
    Wait,
    /// Everything had been started; the control plane is being restarted.
    Recovering,
}

struct Waiting {
    spawned: Option<(i32, Child)>,
    attempts: u32,
    /// The keeper whose start was watched: its failure is our answer.
    seen: Option<Named>,
}

impl Waiting {
    fn is_ours(&self, paths: &Paths) -> bool {
        let pid = self.spawned.as_ref().map(|(pid, _)| *pid);
        pid.is_some() && pid == Record::read(paths).map(|record| record.keeper.pid)
    }

    fn look(&mut self, paths: &Paths, programs: &Programs, say: &dyn Fn(&str)) -> Result<Look, Problem> {
        let ended = match &mut self.spawned {
            Some((_, child)) => child.try_wait().map_err(|error| broken("wait for the keeper", &error))?.is_some(),
            None => false,
        };
        let lives = keeper_lives(paths);
        let record = Record::read(paths);
        if lives {
            let Some(record) = record.filter(|record| record.keeper.lives()) else { return Ok(Look::Wait) };
            return Ok(match record.phase {
                Phase::Starting => {
                    self.seen = Some(record.keeper);
                    Look::Wait
                }
                Phase::Ready => Look::Recovering,
                Phase::Stopping | Phase::Stopped | Phase::Failed => Look::Wait,
            });
        }
        let pid = self.spawned.as_ref().map(|(pid, _)| *pid);
        if let Some(record) = record
            && (Some(record.keeper) == self.seen || (ended && Some(record.keeper.pid) == pid))
            && let Some(problem) = record.problem
        {
            // It let go of its lock and is about to be gone: what is told leaves nothing behind.
            return if record.keeper.lives() { Ok(Look::Wait) } else { Err(problem) };
        }
        if self.spawned.is_some() && !ended {
            return Ok(Look::Wait);
        }
        if self.attempts == ATTEMPTS {
            let log = paths.log("keeper");
            let line = log::last_line(&log, 0);
            let hint = log::hint(&log, line.as_deref());
            let line = line.unwrap_or_default();
            return Err(Problem::unavailable(
                format!("the keeper of the local installation does not stay up: {line}"),
                hint,
            ));
        }
        if self.attempts == 0 {
            say(&format!("starting the local installation in {}", paths.home().display()));
        }
        self.attempts += 1;
        self.spawned = Some(spawn(paths, programs)?);
        Ok(Look::Wait)
    }
}

fn spawn(paths: &Paths, programs: &Programs) -> Result<(i32, Child), Problem> {
    let log = log::open(&paths.log("keeper")).map_err(|error| broken("open the keeper's log", &error))?;
    let second = log.try_clone().map_err(|error| broken("open the keeper's log", &error))?;
    let mut command = Command::new(&programs.exe);
    command.args(["local", "keep"]).current_dir("/").stdin(Stdio::null()).stdout(log).stderr(second);
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept)));
    command.env("ENVFORGE_HOME", paths.home());
    let child = command.spawn().map_err(|error| broken("start the keeper", &error))?;
    Ok((child.id().map_or(0, u32::cast_signed), child))
}

fn control_is_down(paths: &Paths, without_space: bool) -> Problem {
    let record = Record::read(paths);
    let reason = record.as_ref().and_then(|record| record.part("control")?.reason.as_deref()).unwrap_or("no reason");
    let log = format!("the log is {}", paths.log("control").display());
    Problem::unavailable(
        format!("the control plane of the local installation does not stay up: {reason}"),
        if without_space { format!("the disk of {} is full: free space; {log}", paths.home().display()) } else { log },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keeper_gets_no_token_of_the_caller() {
        for name in ["ENVFORGE_TOKEN", "ENVFORGE_SERVER", "AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "TMUX"] {
            assert!(!is_kept(name), "{name}");
        }
        for name in ["PATH", "ENVFORGE_BOOT_ID_PATH", "RUST_LOG", "HTTPS_PROXY", "LC_ALL"] {
            assert!(is_kept(name), "{name}");
        }
    }
}
