//! Shell-layer set-up: behind the prompt, never metered, without resource variables.

use super::manifests::facts;
use crate::{
    daemon::{
        hub::{Hub, Workspace},
        secrets::{self, Given},
    },
    supervise::{
        logs::Logs,
        process,
        setup::{read_done, record_done},
    },
    system::{
        cgroup::Group,
        enter::{As, Entry, base_environment},
        files::Beneath,
        sandbox::{Sandbox, WORKSPACE},
    },
};
use envforge_api::{
    host::{StepReport, WorkspaceIntent},
    names::ServiceName,
    states::{CommandState, Trouble},
    stream::LogLevel,
};
use envforge_manifest::{EnvValue, Layer, ResolvedService, Step, resolve};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Largest `changes` file that is digested, in octets.
const LARGEST: u64 = 64 << 20;

/// Digest of a setup step over its text and `changes` files; the same function for both layers. Steps of the runtime
/// layer also depend on the data they prepare: `data` names it.
#[must_use]
pub fn step_digest(sandbox: &Sandbox, directory: &str, step: &Step, data: &str) -> String {
    let mut digest = Sha256::new();
    for line in &step.run {
        digest.update(line.as_bytes());
        digest.update([0]);
    }
    digest.update(data.as_bytes());
    if let Ok(files) = Beneath::open(&sandbox.files()) {
        for file in &step.changes {
            digest.update([1]);
            digest.update(file.as_bytes());
            match files.read(&Path::new(directory).join(file), LARGEST) {
                Ok(bytes) => digest.update(&bytes),
                Err(_) => digest.update([2]),
            }
        }
    }
    data_encoding::HEXLOWER.encode(&digest.finalize()[..16])
}

/// Runs the shell-layer set-up steps that are due (new text or changed `changes` files), one after the other per
/// service, services side by side; tells `workspace.steps`. Lines go to the log `setup`. Returns, for each service
/// that has such steps, what went wrong.
pub async fn run_setup(
    hub: &Hub,
    workspace: &Workspace,
    intent: &WorkspaceIntent,
    sandbox: &Sandbox,
) -> BTreeMap<ServiceName, Option<Trouble>> {
    let found = super::read_manifests(sandbox, &intent.spec).await;
    super::show_faces(hub, workspace, &intent.spec, &found);
    let resolution = resolve(&intent.spec, &found, &facts(intent));
    let has_steps = |s: &&ResolvedService| s.setup.iter().any(|step| step.layer == Layer::Shell);
    if !resolution.services.iter().any(|service| has_steps(&service)) {
        return BTreeMap::new();
    }
    let given = secrets::fetch(hub, &sandbox.dir, &intent.workspace, &intent.project, &resolution).await;
    let given = given.unwrap_or_else(|error| {
        tracing::error!(%error, workspace = %workspace.id, "secrets cannot be kept: set-up steps go without");
        Given::default()
    });
    // A step may print what lies in the workspace, the files of the services' environments among it.
    let logs = Logs::new(sandbox.dir.join("logs"), secrets::redactor(&sandbox.dir));
    let services = resolution.services.iter().filter(has_steps);
    let runs = services.map(|service| async {
        let outcome = run_service(hub, workspace, sandbox, &logs, service, &given).await;
        (service.name.clone(), outcome.err())
    });
    futures_util::future::join_all(runs).await.into_iter().collect()
}

async fn run_service(
    hub: &Hub,
    workspace: &Workspace,
    sandbox: &Sandbox,
    logs: &Logs,
    service: &ResolvedService,
    given: &Given,
) -> Result<(), Trouble> {
    let say = |name: &str, state: CommandState, exit_code: Option<i32>| {
        workspace.steps.send_modify(|steps| {
            steps.retain(|known| known.name != name);
            steps.push(StepReport {
                name: name.to_owned(),
                shell_layer: true,
                state,
                exit_code,
                last_lines: if state == CommandState::Failed { logs.last("setup") } else { Vec::new() },
            });
            steps.sort_by(|a, b| a.name.cmp(&b.name));
        });
        hub.touch(&workspace.id);
    };
    for step in service.setup.iter().filter(|step| step.layer == Layer::Shell) {
        let name = format!("{}.{}", service.name, step.name);
        let digest = step_digest(sandbox, &service.directory, step, "");
        if read_done(&sandbox.dir, Layer::Shell).get(&name) == Some(&digest) {
            say(&name, CommandState::Succeeded, Some(0));
            continue;
        }
        say(&name, CommandState::Running, None);
        let group = || sandbox.cgroups.shell_child(&format!("setup/{}", service.name)).map_err(super::trouble);
        let mut of_step = group()?;
        if !of_step.is_empty() {
            // What a killed daemon left of it would go on beside it. Nothing can be started in a group that was killed.
            process::end(&of_step).await;
            of_step = group()?;
        }
        logs.write("setup", LogLevel::Info, &format!("{name}: begins"));
        let mut code = 0;
        for command in &step.run {
            code = run_one(sandbox, &of_step, logs, (service, given), command).await?;
            if code != 0 {
                break;
            }
        }
        if code != 0 {
            logs.write("setup", LogLevel::Error, &format!("{name}: ended with status {code}"));
            say(&name, CommandState::Failed, Some(code));
            let slug = &sandbox.hostname;
            return Err(Trouble::new(
                format!("its setup step {name} ended with status {code}"),
                format!(
                    "`envforge logs {slug} setup` has its output; mend it, then `envforge restart {}`",
                    service.name
                ),
            ));
        }
        // A step may have written one of its own `changes` files (a lock file): what counts is how they are now.
        let digest = step_digest(sandbox, &service.directory, step, "");
        if let Err(error) = record_done(&sandbox.dir, Layer::Shell, &name, &digest) {
            // It is done all the same; it will be done again.
            logs.write("setup", LogLevel::Warn, &format!("{name}: not kept as done: {error}"));
        }
        say(&name, CommandState::Succeeded, Some(0));
    }
    Ok(())
}

/// Variables of a shell-layer step: those whose values need no resource. A secret that is not set is left out.
pub(in crate::daemon) fn shell_variables(
    sandbox: &Sandbox,
    service: &ResolvedService,
    given: &Given,
) -> BTreeMap<String, String> {
    let mut all = base_environment(&sandbox.accounts.user);
    for (name, value) in &service.environment {
        let value = match value {
            EnvValue::Known { text } => Some(text.clone()),
            EnvValue::Secret { name } => given.get(name).map(|value| value.expose().to_owned()),
            EnvValue::Resource { .. } => None,
        };
        if let Some(value) = value {
            all.insert(name.clone(), value);
        }
    }
    if let Some(port) = service.http_port {
        all.insert("PORT".into(), port.to_string());
    }
    all
}

async fn run_one(
    sandbox: &Sandbox,
    group: &Group,
    logs: &Logs,
    (service, given): (&ResolvedService, &Given),
    command: &str,
) -> Result<i32, Trouble> {
    let directory = Path::new(WORKSPACE).join(&service.directory);
    let entry = Entry::new(sandbox, As::User, group, directory);
    let environment = shell_variables(sandbox, service, given);
    let mut child = process::spawn(&entry, &process::shell(command), &environment).map_err(super::trouble)?;
    let copy = |stream| {
        let logs = logs.clone();
        async move { logs.copy("setup".into(), stream).await }
    };
    if let Some(out) = child.stdout.take() {
        tokio::spawn(copy(Box::new(out) as Box<dyn tokio::io::AsyncRead + Unpin + Send>));
    }
    let errors = child.stderr.take().map(|err| tokio::spawn(copy(Box::new(err))));
    let status = child.wait().await;
    if let Some(errors) = errors {
        // Its last words are in the log before its failure is shown, unless a child of its own keeps the pipe.
        let _ = tokio::time::timeout(Duration::from_millis(200), errors).await;
    }
    Ok(status.map_or(125, process::exit_code))
}
