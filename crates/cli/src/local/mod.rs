//! The local installation: everything EnvForge needs on one machine, below one directory, without anybody's help.
//!
//! A keeper process starts a private PostgreSQL, the control plane and the host daemon in this order and keeps each
//! alive; any call of the command line starts the keeper when there is none. Rules kept here:
//!
//! * one keeper per home (a lock says so), and a keeper's death stops nothing: the next one takes over;
//! * a part's death restarts that part alone; no service of a workspace depends on any of them being up;
//! * what is told to a person names the part, how it ended and where its log is.
//!
//! | file | holds |
//! |---|---|
//! | `ensure` | finding it running, or starting the keeper |
//! | `keeper`, `part`, `program`, `postgres`, `process` | the keeper, a part's life, the three parts, a process |
//! | `prepare`, `traverse` | what must be true of the machine and the home before |
//! | `state`, `paths`, `log` | `keeper.json` and the lock, places, logs |
//! | `stop`, `status`, `doctor` | ending, showing, examining |

mod doctor;
mod door;
mod ensure;
mod keeper;
mod log;
mod part;
mod paths;
mod postgres;
mod prepare;
mod process;
mod program;
#[cfg(test)]
mod scratch;
mod state;
mod status;
mod stop;
#[cfg(test)]
mod tests;
mod traverse;

pub use state::PartState;

use envforge_api::{client::Endpoint, home, problem::Problem, secret::Secret, time::Timestamp};
use paths::{Paths, Programs};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// The control plane of a running local installation and the right of its owner.
#[derive(Debug, Clone)]
pub struct LocalServer {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The owner's token.
    pub token: Secret,
    /// Whether this call started the installation.
    pub started: bool,
}

/// What runs of a local installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalStatus {
    /// Whether a keeper lives and the control plane serves.
    pub running: bool,
    /// The home.
    pub home: PathBuf,
    /// Where the control plane listens, as `http://…`.
    pub address: Option<String>,
    /// `keeper`, `postgres`, `control`, `host`.
    pub parts: Vec<Part>,
}

/// One part as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// `keeper`, `postgres`, `control` or `host`.
    pub name: String,
    /// Its process, if one lives.
    pub pid: Option<i32>,
    /// Its state.
    pub state: PartState,
    /// Since when; `None` if it never ran.
    pub since: Option<Timestamp>,
    /// How often the keeper started it again.
    pub restarts: u32,
    /// How it last ended by itself, or why it could not be started.
    pub reason: Option<String>,
    /// Its log file.
    pub log: String,
}

/// One thing that [`doctor`] looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Whether an installation cannot do without it.
    pub required: bool,
    /// What was found, such as a version and a path.
    pub found: String,
    /// How to mend it; empty if there is nothing to mend.
    pub hint: String,
}

/// The installation at `home`, started if it does not run. When it runs this costs well under two milliseconds.
///
/// `say` is told, once, when something is started.
///
/// # Errors
/// Why it does not start, with the log to read and what to do.
pub async fn ensure(home: &Path, say: &dyn Fn(&str)) -> Result<LocalServer, Problem> {
    home::check(home)?;
    let paths = Paths::new(home);
    match ensure::running(&paths) {
        Some(server) => Ok(server),
        None => ensure::ensure(&paths, &Programs::current()?, say).await,
    }
}

/// As [`ensure`], without a word.
///
/// # Errors
/// As [`ensure`].
pub async fn start(home: &Path) -> Result<LocalServer, Problem> {
    ensure(home, &|_| {}).await
}

/// Stops the keeper, the host daemon, the control plane and PostgreSQL. Runtimes and terminals of workspaces go on and
/// are adopted at the next start. Does nothing when nothing runs.
///
/// # Errors
/// When it does not stop in time, or belongs to another user.
pub async fn stop(home: &Path) -> Result<(), Problem> {
    home::check(home)?;
    stop::stop(&Paths::new(home)).await
}

/// The same, and then puts every runtime to sleep and ends every terminal: no process of the installation is left.
///
/// # Errors
/// As [`stop`], or when something of a workspace does not end.
pub async fn stop_all(home: &Path) -> Result<(), Problem> {
    home::check(home)?;
    stop::stop_all(&Paths::new(home), &Programs::current()?).await
}

/// Stops the installation and removes it with everything in it. Does nothing when there is none.
///
/// # Errors
/// When it does not stop, when something cannot be removed, or when `home` is not the home of an installation.
pub async fn reset(home: &Path) -> Result<(), Problem> {
    home::check(home)?;
    stop::reset(&Paths::new(home), &Programs::current()?).await
}

/// What runs.
///
/// # Errors
/// When the home is a copy of another installation's.
pub async fn status(home: &Path) -> Result<LocalStatus, Problem> {
    home::check(home)?;
    Ok(status::status(&Paths::new(home)))
}

/// Makes a copied home the installation, when the original is gone; whether anything changed.
///
/// # Errors
/// While the original is there.
pub async fn adopt(home: &Path) -> Result<bool, Problem> {
    if !home::is_adoptable(home)? {
        return Ok(false);
    }
    let paths = Paths::new(home);
    // What it says of processes is about those of the original.
    state::forget(&paths).map_err(|error| Problem::internal(format!("keeper.json stays: {error}")))?;
    prepare::adopt(&paths, &Programs::current()?).await.map(|()| true)
}

/// Looks at what an installation needs from the machine.
pub async fn doctor(home: &Path) -> Vec<Finding> {
    doctor::examine(&Paths::new(home)).await
}

/// Runs the keeper itself (`envforge local keep`); returns when it was stopped.
pub async fn keep(home: &Path) -> ExitCode {
    match home::check(home).and_then(|()| Programs::current()) {
        Ok(programs) => keeper::keep(&Paths::new(home), &programs).await,
        Err(problem) => {
            log::note(&problem.message);
            ExitCode::FAILURE
        }
    }
}
