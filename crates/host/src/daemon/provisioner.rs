//! Provisioners: programs that the operator of a host put at `<home>/provisioners/<kind>`, run for the resources whose mode is
//! `cloud`. docs/provisioners.md is their contract. Nobody can have the host run another path: kinds are words of ours.
//!
//! A program runs as an account of its own that owns nothing, in a control group of its own, with a clean environment and
//! a deadline. What it may know (the organization's settings among it) comes on standard input and nowhere else; what it
//! says on standard error goes to the host's log, masked.

use super::hub::Hub;
use crate::{
    resources::outside::masked_value,
    supervise::{
        process,
        redact::{Redactor, without_users},
    },
    system::{
        accounts,
        cgroup::{self, Group, Limits},
        enter::Entry,
        spawn::Stream,
    },
};
use envforge_api::{
    host::WorkspaceIntent,
    ids::WorkspaceId,
    names::{Branch, ServiceName, Slug},
    resource::ResourceKind,
    secret::Secret,
    states::Trouble,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// Version of the contract.
const VERSION: u32 = 1;
/// How long a program may take. What takes longer answers `coming` and is asked again.
const DEADLINE: Duration = Duration::from_secs(30);
/// The longest answer, and the most that is kept of its words, in octets.
const LONGEST: u64 = 64 << 10;
/// Limits of all that run: they talk to servers and do nothing else.
const LIMITS: Limits = Limits { cpu_millis: 1000, memory_bytes: 1 << 30, pids: 256, cpu_weight: 50 };

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    /// Have it be there, and say how to get in.
    Ensure,
    /// Say whether it is there; change nothing.
    Describe,
    /// Have it be gone, with all its data.
    Remove,
}

/// Which resource of which workspace.
#[derive(Debug, Clone, Serialize)]
pub(super) struct About {
    pub(super) resource: AboutResource,
    pub(super) workspace: AboutWorkspace,
}

/// The resource.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AboutResource {
    pub(super) kind: ResourceKind,
    /// The service that has it for itself.
    pub(super) service: Option<ServiceName>,
    /// PostgreSQL extensions that services ask for.
    pub(super) extensions: Vec<String>,
}

/// The workspace.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AboutWorkspace {
    id: WorkspaceId,
    slug: Slug,
    branch: Branch,
    project: Slug,
    organization: Slug,
}

impl AboutWorkspace {
    pub(super) fn of(intent: &WorkspaceIntent) -> Self {
        Self {
            id: intent.workspace.clone(),
            slug: intent.slug.clone(),
            branch: intent.branch.clone(),
            project: intent.project.clone(),
            organization: intent.organization.clone(),
        }
    }
}

#[derive(Serialize)]
struct Request<'a> {
    version: u32,
    action: Action,
    #[serde(flatten)]
    about: &'a About,
    settings: &'a BTreeMap<String, Secret>,
}

/// Where a resource stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// It is there.
    Ready,
    /// It is being made.
    Coming,
    /// It is being removed.
    Going,
    /// It is not there.
    Absent,
}

/// What a program answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Answer {
    version: u32,
    #[serde(default)]
    pub(super) state: Option<State>,
    #[serde(default)]
    pub(super) fields: Option<BTreeMap<String, Secret>>,
    #[serde(default)]
    error: Option<Said>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Said {
    reason: String,
    #[serde(default)]
    hint: String,
}

/// Asks the provisioner of a resource. `number` names the workspace on this host.
///
/// # Errors
/// When there is none, it does not keep to the contract, or says that it failed. No error has a setting in it.
pub(super) async fn ask(
    hub: &Hub,
    number: u32,
    action: Action,
    about: &About,
    settings: &BTreeMap<String, Secret>,
) -> Result<Answer, Trouble> {
    let kind = about.resource.kind;
    let program = program(&hub.installation.home, kind)?;
    let request = Request { version: VERSION, action, about, settings };
    let request = zeroize::Zeroizing::new(serde_json::to_vec(&request).unwrap_or_default());
    let masks: Vec<Secret> = settings.values().flat_map(masked_value).collect();
    let redactor = Redactor::new(&masks);
    let service = about.resource.service.as_ref().map(|service| format!("-{service}")).unwrap_or_default();
    let ended = run(hub, &format!("w{number}-{kind}{service}"), &program, &request).await?;
    // An answer's own values may be in its words as well.
    let answer: Option<Answer> = serde_json::from_slice(&ended.stdout).ok();
    let own = answer.as_ref().and_then(|answer| answer.fields.as_ref()).into_iter().flat_map(BTreeMap::values);
    let own = Redactor::new(&own.flat_map(masked_value).collect::<Vec<_>>());
    let clean = |text: &str| without_users(&own.clean(&redactor.clean(text)));
    for line in String::from_utf8_lossy(&ended.stderr).lines().take(50) {
        tracing::warn!(workspace = %about.workspace.slug, %kind, said = shown(&clean(line)), "a provisioner said");
    }
    judge(kind, &ended, answer, clean)
}

/// What a run came to. Pure.
fn judge(
    kind: ResourceKind,
    ended: &Ended,
    answer: Option<Answer>,
    clean: impl Fn(&str) -> String,
) -> Result<Answer, Trouble> {
    let again = "it is tried again by itself; the host's log has what the program said";
    let trouble = |what: &str| Err(Trouble::new(format!("the provisioner of {kind} {what}"), again));
    if ended.late {
        return trouble(&format!("did not answer within {} s", DEADLINE.as_secs()));
    }
    if let Some(said) = answer.as_ref().and_then(|answer| answer.error.as_ref()) {
        let hint = if said.hint.trim().is_empty() { again.to_owned() } else { shown(&clean(&said.hint)) };
        return Err(Trouble::new(format!("the provisioner of {kind} says: {}", shown(&clean(&said.reason))), hint));
    }
    match (ended.code, answer) {
        (Some(0), Some(answer)) if answer.version == VERSION => Ok(answer),
        (Some(0), Some(answer)) => {
            trouble(&format!("speaks version {} of the contract, not {VERSION}", answer.version))
        }
        (Some(0), None) => trouble("answered something else than the contract says"),
        (Some(code), _) => trouble(&format!("ended with status {code}")),
        (None, _) => trouble("was killed"),
    }
}

/// One line of words for people.
fn shown(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(300).collect::<String>().trim().to_owned()
}

fn program(home: &Path, kind: ResourceKind) -> Result<PathBuf, Trouble> {
    let dir = home.join("provisioners");
    let path = dir.join(kind.as_str());
    let operator = |reason: String| {
        let hint = format!(
            "the operator of the host puts an executable at provisioners/{kind} in the home of the installation, root's alone to write"
        );
        Trouble::new(reason, hint)
    };
    let Ok(about) = fs::metadata(&path) else {
        return Err(operator(format!("this host has no provisioner of {kind}")));
    };
    if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
        return Err(operator(format!("the provisioner of {kind} on this host is no program")));
    }
    let own = rustix::process::geteuid().as_raw();
    let is_safe = |about: &fs::Metadata| (about.uid() == own || about.uid() == 0) && about.mode() & 0o022 == 0;
    if !is_safe(&about) || !fs::metadata(&dir).is_ok_and(|about| is_safe(&about)) {
        return Err(operator(format!("the provisioner of {kind} on this host can be changed by others")));
    }
    Ok(path)
}

/// How a run ended.
#[derive(Debug, Default)]
struct Ended {
    code: Option<i32>,
    late: bool,
    stdout: zeroize::Zeroizing<Vec<u8>>,
    stderr: Vec<u8>,
}

async fn most(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What comes after is not read: the program may end by it.
        let _ = from.take(LONGEST).read_to_end(&mut bytes).await;
    }
    bytes
}

/// Kills what is left of a program when its question is given up: at a sleep, or with the workspace.
struct Ends(Group);

impl Drop for Ends {
    fn drop(&mut self) {
        // What cannot be killed now is before the next question.
        let _ = self.0.kill();
    }
}

async fn run(hub: &Hub, name: &str, program: &Path, request: &[u8]) -> Result<Ended, Trouble> {
    let system = |e: crate::system::SystemError| Trouble::new(e.to_string(), e.hint);
    let account = accounts::ensure_provisioner_account(&hub.installation).map_err(system)?;
    let base = cgroup::ensure_own(&hub.installation, "provisioners", Some(LIMITS)).map_err(system)?;
    let mut group = base.child(name).map_err(system)?;
    if !group.is_empty() {
        // A killed daemon left it: two at once would work on one resource.
        process::end(&group).await;
        group = base.child(name).map_err(system)?;
    }
    let _ends = Ends(group.clone());
    let variables =
        [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("HOME", "/nonexistent"), ("TMPDIR", "/tmp")];
    let environment: BTreeMap<String, String> =
        variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let ended = if rustix::process::geteuid().is_root() {
        let entry = Entry {
            pins: vec![],
            group: group.clone(),
            account,
            directory: PathBuf::from("/"),
            oom_score_adj: 500,
            terminal: false,
            source: None,
            placed: false,
            no_subvolumes: false,
        };
        let argv = [program.to_string_lossy().into_owned()];
        let streams = [Stream::Piped, Stream::Piped, Stream::Piped];
        let mut child = entry.start(&argv, &environment, streams, true).map_err(system)?;
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        talk(streams, child.wait(), request).await
    } else {
        // An ordinary user's installation has no other account.
        let mut command = tokio::process::Command::new(program);
        command.env_clear().envs(&environment).current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |e| system(crate::system::SystemError::new("start a provisioner", e));
        let mut child = command.spawn().map_err(failed)?;
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        talk(streams, child.wait(), request).await
    };
    process::end(&group).await;
    let _ = group.remove();
    Ok(ended)
}

/// Says what is asked and hears the answer, until the end or the deadline.
async fn talk<I: AsyncWrite + Unpin, O: AsyncRead + Unpin, E: AsyncRead + Unpin>(
    (stdin, out, err): (Option<I>, Option<O>, Option<E>),
    end: impl Future<Output = std::io::Result<std::process::ExitStatus>>,
    request: &[u8],
) -> Ended {
    let all = async {
        let told = async {
            if let Some(mut stdin) = stdin {
                // One that does not read may know enough.
                let _ = stdin.write_all(request).await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(told, most(out), most(err));
        (end.await, stdout, stderr)
    };
    match timeout(DEADLINE, all).await {
        Ok((status, stdout, stderr)) => Ended {
            code: status.ok().and_then(|status| status.code()),
            late: false,
            stdout: zeroize::Zeroizing::new(stdout),
            stderr,
        },
        Err(_) => Ended { late: true, ..Ended::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: i32, stdout: &str) -> Result<Answer, Trouble> {
        let ended = Ended { code: Some(code), stdout: zeroize::Zeroizing::new(stdout.into()), ..Ended::default() };
        let answer = serde_json::from_str(stdout).ok();
        judge(ResourceKind::Database, &ended, answer, |text| text.replace("hunter2", "***"))
    }

    #[test]
    fn an_answer_is_taken_when_it_keeps_to_the_contract_and_a_failure_in_its_own_words() {
        let ready =
            judged(0, r#"{"version":1,"state":"ready","fields":{"url":"postgres://a"},"more":1}"#).expect("taken");
        assert_eq!((ready.state, ready.fields.map(|fields| fields.len())), (Some(State::Ready), Some(1)));
        let reason = |code, stdout| judged(code, stdout).expect_err(stdout).reason;
        assert!(reason(1, r#"{"version":1,"error":{"reason":"no\nroom hunter2"}}"#).ends_with("says: no room ***"));
        assert!(reason(1, "").ends_with("ended with status 1"));
        assert!(reason(3, r#"{"version":1,"state":"ready"}"#).ends_with("ended with status 3"));
        assert!(reason(0, "hunter2").ends_with("answered something else than the contract says"));
        assert!(reason(0, r#"{"version":2}"#).ends_with("version 2 of the contract, not 1"));
        let late = Ended { late: true, ..Ended::default() };
        let late = judge(ResourceKind::Database, &late, None, str::to_owned).expect_err("late");
        assert!(late.reason.contains("within 30 s"), "{}", late.reason);
    }

    #[test]
    fn a_program_that_others_can_change_is_not_run() {
        let home = tempfile::tempdir().expect("directory");
        let reason = || program(home.path(), ResourceKind::Database).expect_err("refused").reason;
        assert!(reason().contains("no provisioner"));
        let dir = home.path().join("provisioners");
        fs::create_dir(&dir).expect("made");
        let at = dir.join("database");
        fs::write(&at, "#!/bin/sh\n").expect("written");
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        mode(&dir, 0o755);
        mode(&at, 0o644);
        assert!(reason().contains("is no program"));
        mode(&at, 0o775);
        assert!(reason().contains("changed by others"));
        mode(&at, 0o755);
        assert_eq!(program(home.path(), ResourceKind::Database).expect("a program"), at);
        mode(&dir, 0o777);
        assert!(reason().contains("changed by others"));
    }
}
