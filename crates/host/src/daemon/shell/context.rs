//! What a workspace tells the people and agents in it: README, `.envforge/context.json`, a page for agents, and the
//! terminal's configuration. No secret, no password, no address of the host is in any of them.

use super::manifests::facts;
use crate::system::{
    Result, SystemError,
    accounts::Account,
    files::Beneath,
    sandbox::{Sandbox, WORKSPACE},
};
use envforge_api::{host::WorkspaceIntent, names::ServiceName, resource::ResourceMode};
use envforge_manifest::{FoundManifest, Layer, Resolution, ResolvedResource, ResolvedService, resolve};
use serde_json::json;
use std::{collections::BTreeMap, fmt::Write, io, path::Path};

const TMUX: &str = "\
# Written by EnvForge; your own settings belong into ~/.tmux.conf, which is read last.
set -g default-terminal tmux-256color
set -g history-limit 50000
set -g mouse on
set -g focus-events on
set -sg escape-time 10
set -g update-environment 'GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL'
set -g status-left '#H '
set -g status-left-length 40
set -g default-command /bin/bash
source-file -q ~/.tmux.conf
";

const BASHRC: &str = "\
# Written by EnvForge once; it is yours from here on.
case $- in *i*) ;; *) return ;; esac
HISTSIZE=100000 HISTFILESIZE=200000
shopt -s histappend checkwinsize
PS1='\\[\\e[32m\\]\\h\\[\\e[0m\\]:\\[\\e[34m\\]\\w\\[\\e[0m\\]\\$ '
alias ll='ls -l'
[ -r /usr/share/bash-completion/bash_completion ] && . /usr/share/bash-completion/bash_completion
";

const PROFILE: &str = "[ -n \"$BASH\" ] && [ -r ~/.bashrc ] && . ~/.bashrc\n";

/// The page that a workspace begins with.
pub(in crate::daemon) fn readme(intent: &WorkspaceIntent) -> String {
    format!(
        "# {slug}\n\nThe workspace of branch `{branch}` of project `{project}`.\n\n{checkouts}\n\
         Services answer on `localhost`; `.envforge/AGENTS.md` says which, and what else there is.\n\
         `envforge status` shows what runs, `envforge sleep` stops it; files, shells and data stay.\n",
        slug = intent.slug,
        branch = intent.branch,
        project = intent.project,
        checkouts = intent.spec.checkouts().iter().fold(String::new(), |mut all, c| {
            let names: Vec<_> = c.services.iter().map(ServiceName::as_str).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(all, "- `{}/`: {}", c.directory, names.join(", "));
            all
        }),
    )
}

/// Files that belong to the user from their first moment on: written when missing, never replaced.
pub(super) fn write_once(files: &Beneath, intent: &WorkspaceIntent, user: &Account) -> Result<()> {
    let readme = readme(intent);
    let once = [("README.md", readme.as_str()), (".home/.bashrc", BASHRC), (".home/.profile", PROFILE)];
    for (path, text) in once {
        match files.read(Path::new(path), 1 << 20) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
                files.write(Path::new(path), text.as_bytes(), 0o644, user)?;
            }
            Ok(_) | Err(_) => {}
        }
    }
    files.write(Path::new(".envforge/tmux.conf"), TMUX.as_bytes(), 0o644, user)
}

/// Writes `.envforge/context.json` and `.envforge/AGENTS.md` from what the checkouts declare now.
///
/// # Errors
/// When the disk refuses, or something else than a directory lies at `.envforge`.
pub fn write(sandbox: &Sandbox, intent: &WorkspaceIntent, found: &BTreeMap<ServiceName, FoundManifest>) -> Result<()> {
    let files = Beneath::open(&sandbox.files())?;
    let user = &sandbox.accounts.user;
    // Whoever removed it gets it again.
    files.ensure_dir(Path::new(".envforge"), 0o700, user)?;
    let resolution = resolve(&intent.spec, found, &facts(intent));
    let json = serde_json::to_vec_pretty(&context(intent, &resolution))
        .map_err(|e| SystemError::new("describe the workspace", io::Error::new(io::ErrorKind::InvalidData, e)))?;
    files.write(Path::new(".envforge/context.json"), &json, 0o644, user)?;
    files.write(Path::new(".envforge/AGENTS.md"), page(intent, &resolution).as_bytes(), 0o644, user)
}

fn context(intent: &WorkspaceIntent, resolution: &Resolution) -> serde_json::Value {
    let service = |s: &ResolvedService| {
        let steps = |steps: &[envforge_manifest::Step]| -> Vec<serde_json::Value> {
            steps.iter().map(|t| json!({ "name": t.name, "run": t.run, "layer": t.layer })).collect()
        };
        json!({
            "name": s.name,
            "directory": format!("{WORKSPACE}/{}", s.directory),
            "port": s.http_port,
            "local_url": s.http_port.map(|port| format!("http://localhost:{port}")),
            "public_url": intent.urls.get(&s.name),
            "command": s.command,
            "workers": s.workers.iter().map(|(name, command)| json!({ "name": name, "command": command })).collect::<Vec<_>>(),
            "variables": s.environment.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "setup": steps(&s.setup),
            "tests": steps(&s.tests),
            "blocked": s.blocked.as_ref().map(|t| &t.reason),
        })
    };
    json!({
        "workspace": intent.slug,
        "project": intent.project,
        "organization": intent.organization,
        "branch": intent.branch,
        "services": resolution.services.iter().map(service).collect::<Vec<_>>(),
        "resources": resolution.resources.iter().map(|r| json!({
            "kind": r.kind, "mode": r.mode, "port": port_of(r), "consumers": r.consumers,
        })).collect::<Vec<_>>(),
    })
}

/// Where it is in the workspace; the address of one that lies elsewhere is nobody's but its services'.
fn port_of(resource: &ResolvedResource) -> Option<u16> {
    (resource.mode == ResourceMode::Managed).then(|| resource.kind.port())
}

fn page(intent: &WorkspaceIntent, resolution: &Resolution) -> String {
    let mut page = format!(
        "# Working in {slug}\n\nThis is a development workspace: branch `{branch}` of project `{project}`, at `/workspace`.\n\
         The same facts for programs are in `.envforge/context.json`. Neither file holds a secret.\n\n## Services\n\n",
        slug = intent.slug,
        branch = intent.branch,
        project = intent.project,
    );
    for s in &resolution.services {
        let port = s.http_port.map_or(String::new(), |port| format!(", `http://localhost:{port}`"));
        let _ = writeln!(page, "- **{}**: `/workspace/{}`{port}", s.name, s.directory);
        let names: Vec<_> = s.environment.iter().map(|(name, _)| format!("`{name}`")).collect();
        if !names.is_empty() {
            let _ = writeln!(page, "  - variables of its processes: {}", names.join(", "));
        }
        for test in &s.tests {
            let wakes = if test.layer == Layer::Shell { "" } else { ", wakes the runtime" };
            let _ = writeln!(page, "  - `envforge run --service {} test {}`{wakes}", s.name, test.name);
        }
        if let Some(blocked) = &s.blocked {
            let _ = writeln!(page, "  - cannot start: {}", blocked.reason);
        }
    }
    if !resolution.resources.is_empty() {
        page.push_str("\n## Resources\n\n");
        for r in &resolution.resources {
            let consumers: Vec<_> = r.consumers.iter().map(ServiceName::as_str).collect();
            let at = port_of(r).map_or(String::new(), |port| format!(", `localhost:{port}`"));
            let _ = writeln!(page, "- {} ({}){at}, used by {}", r.kind, r.mode, consumers.join(", "));
        }
    }
    page.push_str(
        "\n## Commands\n\n\
         - `envforge status`: shell, runtime, services and billing, each with reason and hint\n\
         - `envforge wake --wait`, `envforge sleep`: the runtime; files, shells and data stay\n\
         - `envforge why SERVICE`: why it is not healthy, with its last lines\n\
         - `envforge logs SERVICE -n 50`, `envforge restart SERVICE`\n\
         - `envforge run --service SERVICE -- CMD`: a command with that service's variables\n\
         - `envforge env --service SERVICE`: its variables, masked\n\n\
         Services run from these checkouts. An edited envforge.yml takes effect at `envforge restart SERVICE`.\n",
    );
    page
}
