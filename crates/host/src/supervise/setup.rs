//! Runtime-layer setup steps: run before their service first starts, never twice at once, recorded when they are done.

use super::{
    events::Event,
    process,
    protocol::{ProcessSpec, SetupStep},
    runtime::{Runtime, Shared},
};
use crate::system::{
    enter::{As, Entry},
    files,
    sandbox::WORKSPACE,
};
use envforge_api::{
    host::StepReport,
    states::{CommandState, Trouble},
    stream::LogLevel,
};
use envforge_manifest::Layer;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};
use tokio::net::unix::pipe;

/// The steps of one service.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) state: SetupState,
    steps: Vec<SetupStep>,
    /// The process whose environment and directory they get.
    of: ProcessSpec,
}

/// How far they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SetupState {
    /// Its resources are not there yet.
    Waiting,
    Running,
    Done,
    Failed(Trouble),
}

/// Which steps were done, with which digest.
pub type Done = BTreeMap<String, String>;

/// Each layer has a file of its own, because each has a writer of its own: the supervisor or the daemon.
fn done_path(workspace_dir: &Path, layer: Layer) -> std::path::PathBuf {
    workspace_dir.join("state").join(match layer {
        Layer::Runtime => "setup.json",
        Layer::Shell => "setup-shell.json",
    })
}

/// Reads what is done of a workspace's steps.
#[must_use]
pub fn read_done(workspace_dir: &Path, layer: Layer) -> Done {
    let bytes = fs::read(done_path(workspace_dir, layer)).unwrap_or_default();
    // A file that cannot be read means that steps run again, which they must bear.
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Records a step as done.
///
/// # Errors
/// When the disk refuses; the step then runs again.
pub fn record_done(workspace_dir: &Path, layer: Layer, step: &str, digest: &str) -> crate::system::Result<()> {
    let mut done = read_done(workspace_dir, layer);
    done.insert(step.to_owned(), digest.to_owned());
    let bytes = serde_json::to_vec_pretty(&done).unwrap_or_default();
    files::write_durably(&done_path(workspace_dir, layer), &bytes, 0o600)
}

impl Setup {
    /// The setups of all services among `processes` that have steps to run.
    pub(super) fn all(processes: &[ProcessSpec]) -> BTreeMap<String, Self> {
        let mut all = BTreeMap::new();
        for process in processes {
            if !process.setup.is_empty() && process.blocked.is_none() {
                all.entry(process.service.clone()).or_insert_with(|| Self {
                    state: SetupState::Waiting,
                    steps: process.setup.clone(),
                    of: process.clone(),
                });
            }
        }
        all
    }
}

impl Runtime {
    pub(super) fn start_setups(&mut self) {
        let ready: Vec<String> = self
            .setups
            .iter()
            .filter(|(_, setup)| setup.state == SetupState::Waiting)
            .filter(|(name, setup)| !setup.of.awaits_shell || matches!(self.released.get(*name), Some(None)))
            .filter(|(_, setup)| {
                setup.of.requires.iter().all(|kind| self.resource_trouble(*kind, &setup.of.service).is_none())
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in ready {
            let Some(setup) = self.setups.get_mut(&name) else { continue };
            setup.state = SetupState::Running;
            let (steps, of, shared) = (setup.steps.clone(), setup.of.clone(), Rc::clone(&self.shared));
            for step in &steps {
                self.steps.retain(|known| known.name != step.name);
                self.steps.push(StepReport {
                    name: step.name.clone(),
                    shell_layer: false,
                    state: CommandState::Queued,
                    exit_code: None,
                    last_lines: Vec::new(),
                });
            }
            // Ends with its steps; a sleep kills their group, which ends them as failed.
            tokio::task::spawn_local(async move {
                let outcome = run_steps(&shared, &name, &steps, &of).await;
                shared.tell(Event::SetupEnded { service: name, outcome });
            });
        }
    }

    pub(super) fn step(&mut self, _service: &str, step: &str, ended: Option<i32>) {
        let last = self.shared.logs.last("setup");
        let Some(report) = self.steps.iter_mut().find(|s| s.name == step) else { return };
        report.exit_code = ended;
        report.state = match ended {
            None => CommandState::Running,
            Some(0) => CommandState::Succeeded,
            Some(_) => CommandState::Failed,
        };
        report.last_lines = if ended.is_some_and(|code| code != 0) { last } else { Vec::new() };
    }

    pub(super) fn setup_ended(&mut self, service: &str, outcome: Result<(), Trouble>) {
        if let Some(setup) = self.setups.get_mut(service) {
            setup.state = match outcome {
                Ok(()) => SetupState::Done,
                Err(trouble) => SetupState::Failed(trouble),
            };
        }
    }
}

async fn run_steps(shared: &Rc<Shared>, service: &str, steps: &[SetupStep], of: &ProcessSpec) -> Result<(), Trouble> {
    let hint = |step: &str| {
        let name = step.split_once('.').map_or(step, |(_, name)| name);
        format!(
            "`envforge logs {} setup` has its output; mend it, then `envforge restart {service}` (step `{name}`)",
            shared.sandbox.hostname
        )
    };
    for step in steps {
        shared.tell(Event::Step { service: service.to_owned(), step: step.name.clone(), ended: None });
        shared.logs.write("setup", LogLevel::Info, &format!("{}: begins", step.name));
        for command in &step.run {
            let code = match run_one(shared, service, command, of).await {
                Ok(code) => code,
                Err(trouble) => {
                    shared.tell(Event::Step { service: service.to_owned(), step: step.name.clone(), ended: Some(125) });
                    return Err(trouble);
                }
            };
            if code != 0 {
                shared.logs.write("setup", LogLevel::Error, &format!("{}: ended with status {code}", step.name));
                shared.tell(Event::Step { service: service.to_owned(), step: step.name.clone(), ended: Some(code) });
                let reason = format!("its setup step {} ended with status {code}", step.name);
                return Err(Trouble::new(reason, hint(&step.name)));
            }
        }
        if let Err(error) = record_done(&shared.sandbox.dir, Layer::Runtime, &step.name, &step.digest) {
            // It is done all the same: its service starts, and the next wake does it again.
            shared.logs.write("setup", LogLevel::Warn, &format!("{}: not kept as done: {error}", step.name));
        }
        shared.tell(Event::Step { service: service.to_owned(), step: step.name.clone(), ended: Some(0) });
    }
    Ok(())
}

async fn run_one(shared: &Rc<Shared>, service: &str, command: &str, of: &ProcessSpec) -> Result<i32, Trouble> {
    let directory = Path::new(WORKSPACE).join(&of.directory);
    logged(shared, service, directory, &process::shell(command), &process::exposed(&of.environment)).await
}

/// Runs a command as the workspace's user in a group of its own; what it says goes to the log `setup`. Nothing of it is
/// left when this is over.
pub(super) async fn logged(
    shared: &Rc<Shared>,
    group: &str,
    directory: PathBuf,
    argv: &[String],
    environment: &BTreeMap<String, String>,
) -> Result<i32, Trouble> {
    let system = |e: crate::system::SystemError| Trouble::new(e.to_string(), e.hint);
    let group = shared.sandbox.cgroups.runtime_child(&format!("setup/{group}")).map_err(system)?;
    let entry = Entry { oom_score_adj: 500, ..Entry::new(&shared.sandbox, As::User, &group, directory) };
    let mut child = process::spawn(&entry, argv, environment).map_err(system)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let copy = async |from: Option<pipe::Receiver>| {
        if let Some(from) = from {
            shared.logs.clone().copy("setup".into(), from).await;
        }
    };
    let copied = async {
        tokio::join!(copy(out), copy(err));
    };
    let status = process::wait_copied(&mut child, copied).await;
    process::end(&group).await;
    Ok(status.map_or(125, process::exit_code))
}
