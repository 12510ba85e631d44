//! `envforge run`: commands in a service's environment, with their output kept until the receipt is read.

use super::{
    events::Event,
    logs::next_line,
    process,
    protocol::{Answer, RunFrame, RunOrder, RunState},
    runtime::{Runtime, Shared},
    setup::record_done,
};
use crate::system::{
    SystemError,
    cgroup::Group,
    enter::{As, Entry},
};
use envforge_api::{
    ids::CommandId,
    states::{CommandState, Trouble},
};
use envforge_manifest::Layer;
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    rc::Rc,
};
use tokio::io::{AsyncRead, BufReader};

/// One run.
#[derive(Debug)]
pub(super) struct Run {
    /// Whether set-up steps are among what it runs.
    is_setup: bool,
    title: String,
    group: Option<Group>,
    cancelled: bool,
    state: CommandState,
    exit_code: Option<i32>,
    reason: Option<String>,
}

impl Run {
    pub(super) fn state(&self, id: &CommandId) -> RunState {
        RunState { id: id.clone(), state: self.state, exit_code: self.exit_code, reason: self.reason.clone() }
    }
}

/// Where a run's output is.
#[must_use]
pub fn output_path(workspace_dir: &Path, id: &CommandId) -> PathBuf {
    workspace_dir.join("runs").join(format!("{id}.out"))
}

/// Ended runs that are remembered for a daemon that was away: more than anyone follows at once.
const REMEMBERED: usize = 64;
/// Outputs that are kept.
const KEPT: usize = 256;

/// Removes the oldest outputs of a workspace beyond those that are kept.
pub fn prune_outputs(workspace_dir: &Path) {
    let Ok(entries) = fs::read_dir(workspace_dir.join("runs")) else { return };
    // Ids are in the order in which they were made, and so are their files.
    let mut all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    all.sort_unstable();
    for old in all.iter().rev().skip(KEPT) {
        // One that stays takes space, nothing else.
        let _ = fs::remove_file(old);
    }
}

impl Runtime {
    pub(super) fn running_commands(&self) -> Vec<String> {
        let under_way = self.runs.values().filter(|run| !run.state.is_final());
        under_way.map(|run| format!("run `{}`", run.title)).collect()
    }

    /// Whether a set-up step runs: the same one is never run twice at once.
    fn is_setting_up(&self) -> bool {
        self.steps.iter().any(|step| !step.state.is_final())
            || self.runs.values().any(|run| run.is_setup && !run.state.is_final())
    }

    pub(super) fn begin_run(&mut self, order: RunOrder) -> Answer {
        if self.runs.contains_key(&order.id) {
            return Answer::Accepted;
        }
        let is_setup = order.parts.iter().any(|part| part.records.is_some());
        if is_setup && let Err(trouble) = self.may_set_up() {
            return Answer::Refused { trouble };
        }
        let group = match self.shared.sandbox.cgroups.runtime_child(&format!("runs/{}", order.id)) {
            Ok(group) => group,
            Err(error) => return Answer::Refused { trouble: Trouble::new(error.to_string(), error.hint) },
        };
        let title = order.parts.first().map_or_else(String::new, |part| part.title.clone());
        self.remember_run(&order.id, is_setup, title, Some(group.clone()));
        let shared = Rc::clone(&self.shared);
        // Ends with its command; a sleep or a cancellation ends the group, and the command with it.
        tokio::task::spawn_local(async move {
            let id = order.id.clone();
            let (exit_code, reason) = match run_parts(&shared, &order, &group).await {
                Ok(code) => (Some(code), (code != 0).then(|| format!("ended with status {code}"))),
                Err(Trouble { reason, hint }) if hint.is_empty() => (None, Some(reason)),
                Err(Trouble { reason, hint }) => (None, Some(format!("{reason} ({hint})"))),
            };
            let _ = group.remove();
            shared.tell(Event::RunEnded { id, exit_code, reason });
        });
        Answer::Accepted
    }

    fn may_set_up(&self) -> Result<(), Trouble> {
        if !self.is_setting_up() {
            return Ok(());
        }
        let hint =
            format!("wait until that has ended: `envforge logs {} setup -f` shows it", self.shared.sandbox.hostname);
        Err(Trouble::new("set-up steps are running already", hint))
    }

    fn remember_run(&mut self, id: &CommandId, is_setup: bool, title: String, group: Option<Group>) {
        let ended: Vec<CommandId> =
            self.runs.iter().filter(|(_, run)| run.state.is_final()).map(|(id, _)| id.clone()).collect();
        for old in ended.iter().rev().skip(REMEMBERED) {
            self.runs.remove(old);
        }
        prune_outputs(&self.shared.sandbox.dir);
        let state = CommandState::Running;
        self.runs
            .insert(id.clone(), Run { is_setup, title, group, cancelled: false, state, exit_code: None, reason: None });
    }

    /// Remembers what ends with set-up steps and has no process of its own.
    ///
    /// # Errors
    /// When steps run already, or its output cannot be kept.
    pub(super) fn note_run(&mut self, id: &CommandId, title: String) -> Result<Output, Trouble> {
        self.may_set_up()?;
        let output = Output::of(&self.shared, id)?;
        self.remember_run(id, true, title, None);
        Ok(output)
    }

    /// What has no process of its own cannot be stopped in the middle.
    pub(super) fn cancel_run(&mut self, id: &CommandId) {
        let Some(run) = self.runs.get_mut(id).filter(|run| !run.state.is_final()) else { return };
        let Some(group) = run.group.clone() else { return };
        run.cancelled = true;
        let grace = self.shared.grace;
        tokio::task::spawn_local(async move { process::stop(&group, grace).await });
    }

    pub(super) fn run_ended(&mut self, id: &CommandId, exit_code: Option<i32>, reason: Option<String>) {
        let Some(run) = self.runs.get_mut(id) else { return };
        run.exit_code = exit_code;
        run.state = match (run.cancelled, exit_code) {
            (true, _) => CommandState::Cancelled,
            (false, Some(0)) => CommandState::Succeeded,
            (false, Some(_) | None) => CommandState::Failed,
        };
        run.reason = if run.cancelled { Some("cancelled".into()) } else { reason };
    }

    /// A sleep ends what still runs.
    pub(super) fn cancel_all_runs(&mut self) {
        for run in self.runs.values_mut().filter(|run| !run.state.is_final()) {
            run.cancelled = true;
        }
    }
}

/// Appends frames to a run's file.
#[derive(Debug)]
pub(super) struct Output {
    file: std::cell::RefCell<fs::File>,
}

impl Output {
    fn of(shared: &Shared, id: &CommandId) -> Result<Self, Trouble> {
        let path = output_path(&shared.sandbox.dir, id);
        Self::create(&path).map_err(|e| {
            let error = SystemError::new("keep the run's output", e).on_disk(&path);
            Trouble::new(error.to_string(), error.hint)
        })
    }

    /// A line for whoever follows.
    pub(super) fn say(&self, line: &str) {
        self.write(&RunFrame::Err(format!("{line}\n")));
    }

    /// The last word.
    pub(super) fn exit(&self, code: i32) {
        self.write(&RunFrame::Exit(code));
    }

    fn create(path: &Path) -> std::io::Result<Self> {
        let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        Ok(Self { file: std::cell::RefCell::new(file) })
    }

    fn write(&self, frame: &RunFrame) {
        if let Ok(mut line) = serde_json::to_vec(frame) {
            line.push(b'\n');
            // A full disk loses output, not the command's status.
            let _ = self.file.borrow_mut().write_all(&line);
        }
    }
}

async fn run_parts(shared: &Rc<Shared>, order: &RunOrder, group: &Group) -> Result<i32, Trouble> {
    let output = Output::of(shared, &order.id)?;
    let several = order.parts.len() > 1;
    let mut code = 0;
    for part in &order.parts {
        if several && !part.title.is_empty() {
            output.write(&RunFrame::Err(format!("== {}\n", part.title)));
        }
        let entry = Entry { oom_score_adj: 500, ..Entry::new(&shared.sandbox, As::User, group, &part.directory) };
        let spawned = process::spawn(&entry, &part.argv, &process::exposed(&part.environment));
        let mut child = spawned.map_err(|e| Trouble::new(e.to_string(), e.hint))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let copied = async {
            tokio::join!(copy(shared, &output, out, RunFrame::Out), copy(shared, &output, err, RunFrame::Err));
        };
        let status = process::wait_copied(&mut child, copied).await;
        code = status.map_or(125, process::exit_code);
        if code != 0 {
            break;
        }
        if let Some((step, digest)) = &part.records
            && let Err(error) = record_done(&shared.sandbox.dir, Layer::Runtime, step, digest)
        {
            output.write(&RunFrame::Err(format!("== {step}: not kept as done: {error}\n")));
        }
    }
    process::end(group).await;
    output.exit(code);
    Ok(code)
}

async fn copy(shared: &Shared, output: &Output, from: Option<impl AsyncRead + Unpin>, frame: fn(String) -> RunFrame) {
    let Some(from) = from else { return };
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while let Some(text) = next_line(&mut reader, &mut line).await {
        output.write(&frame(format!("{}\n", shared.logs.clean(&text))));
    }
}
