//! Short calls of `envforge host …`: what the machine must have ready before the parts run, and what is put to rest
//! or given back after them.

use super::{
    log,
    paths::{Paths, Programs},
    program::broken,
};
use envforge_api::problem::{ErrorBody, Problem};
use serde::Deserialize;
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// What `envforge host prepare` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Prepared {
    /// Short directory for sockets.
    pub(super) run: PathBuf,
    /// The account PostgreSQL runs as; `None`: the caller's own.
    #[serde(default)]
    pub(super) postgres: Option<Account>,
    /// Control group for PostgreSQL, where there is one.
    #[serde(default)]
    pub(super) postgres_cgroup: Option<PathBuf>,
}

/// A system account.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Account {
    /// User id.
    pub(super) uid: u32,
    /// Group id.
    pub(super) gid: u32,
}

/// `host prepare`: claims what the installation needs from the machine. Idempotent.
///
/// # Errors
/// What the host says is missing.
pub(super) async fn prepare(paths: &Paths, programs: &Programs) -> Result<Prepared, Problem> {
    let answer = call(paths, programs, "prepare", Duration::from_secs(30)).await?;
    serde_json::from_slice(&answer)
        .map_err(|error| Problem::internal(format!("`envforge host prepare` answered something else: {error}")))
}

/// `host quiesce`: puts every runtime to sleep and ends the processes of every shell.
///
/// # Errors
/// When something could not be ended.
pub(super) async fn quiesce(paths: &Paths, programs: &Programs) -> Result<(), Problem> {
    call(paths, programs, "quiesce", Duration::from_secs(60)).await.map(drop)
}

/// `host adopt`: ends what may be left of the original, and then makes a copied home the installation.
///
/// # Errors
/// When something of it does not end.
pub(super) async fn adopt(paths: &Paths, programs: &Programs) -> Result<(), Problem> {
    call(paths, programs, "adopt", Duration::from_secs(60)).await.map(drop)
}

/// `host wipe`: removes everything of the installation that lies outside its home.
///
/// # Errors
/// When something could not be removed.
pub(super) async fn wipe(paths: &Paths, programs: &Programs) -> Result<(), Problem> {
    // People may have left millions of files.
    call(paths, programs, "wipe", Duration::from_secs(600)).await.map(drop)
}

async fn call(paths: &Paths, programs: &Programs, verb: &str, patience: Duration) -> Result<Vec<u8>, Problem> {
    let mut command = Command::new(&programs.exe);
    command.args(["host", verb, "--home"]).arg(paths.home()).env("ENVFORGE_HOME", paths.home()).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = match timeout(patience, command.output()).await {
        Ok(output) => output.map_err(|error| broken(&format!("run `envforge host {verb}`"), &error))?,
        Err(_) => {
            return Err(Problem::unavailable(
                format!("`envforge host {verb}` did not end within {} seconds", patience.as_secs()),
                "`envforge doctor` says what the machine lacks",
            ));
        }
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    log::note(&format!("`envforge host {verb}` failed ({}): {}", output.status, text.trim()));
    if let Ok(body) = serde_json::from_str::<ErrorBody>(text.trim()) {
        return Err(body.error);
    }
    let (reason, hint) = told(&text);
    Err(Problem::unavailable(
        format!("`envforge host {verb}` failed: {}", reason.unwrap_or("it says nothing")),
        hint.unwrap_or("`envforge doctor` says what the machine lacks"),
    ))
}

/// The last reason that a program of ours gave, and the hint below it.
fn told(text: &str) -> (Option<&str>, Option<&str>) {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let at = lines.iter().rposition(|line| line.starts_with("envforge: "));
    let reason = at.and_then(|at| lines.get(at)).or(lines.last()).map(|line| line.trim());
    let hint = at.and_then(|at| lines.get(at + 1)).filter(|line| line.starts_with("  ")).map(|line| line.trim());
    (reason.map(|line| line.strip_prefix("envforge: ").unwrap_or(line)), hint)
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn a_reason_is_told_with_its_hint_and_other_words_are_told_as_they_are() {
        let both = (Some("cannot claim a subnet"), Some("reset one"));
        assert_eq!(told("noise\nenvforge: cannot claim a subnet\n  reset one\n"), both);
        assert_eq!(told("envforge: cannot go on\n"), (Some("cannot go on"), None));
        assert_eq!(told("Killed\n\n"), (Some("Killed"), None));
        assert_eq!(told(""), (None, None));
    }
}
