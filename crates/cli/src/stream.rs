//! Streams to a host: terminal, commands, logs, output of runs. `envforge_api::stream` says what goes over them.

pub(crate) mod attach;
pub(crate) mod cache;
pub(crate) mod exec;
pub(crate) mod framing;
pub(crate) mod stdin;
pub(crate) mod terminal;

use crate::{
    context::Context,
    settings::{INSIDE_SOCKET, Target},
};
use envforge_api::{
    capability::Right,
    client::{Client, Endpoint},
    names::{ServiceName, Slug},
    problem::Problem,
    public::{Grant, GrantRequest, Opened},
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Asks for a capability on a workspace.
///
/// # Errors
/// As the request.
pub(crate) async fn grant(
    context: &Context,
    workspace: &Slug,
    rights: Vec<Right>,
    service: Option<ServiceName>,
) -> Result<Grant, Problem> {
    let client = context.client().await?;
    let request = GrantRequest { rights, service };
    match client.post(&format!("/v1/workspaces/{workspace}/grant"), &request).await? {
        Granted::Opened(opened) => Ok(opened.grant),
        Granted::Grant(grant) => Ok(grant),
    }
}

/// A grant alone, or with the workspace it opens.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Granted {
    Opened(Box<Opened>),
    Grant(Grant),
}

/// A client of the host that a grant opens.
///
/// # Errors
/// [`envforge_api::problem::ProblemKind::Unavailable`] when the host is on another machine.
pub(crate) fn host(context: &Context, grant: &Grant) -> Result<Client, Problem> {
    let socket = match (&context.settings.target, &grant.local_socket) {
        (Target::Inside { .. }, _) => INSIDE_SOCKET,
        (Target::Remote { .. } | Target::Local, Some(socket)) => socket,
        (Target::Remote { .. } | Target::Local, None) => {
            return Err(Problem::unavailable(
                "the workspace lies on a host that cannot be reached from here",
                "run this on the host's machine",
            ));
        }
    };
    Ok(Client::new(Endpoint::Unix(socket.into()), Some(grant.token.clone())).with_patience(crate::context::RESTART))
}

/// The Git identity of the caller as Git's own variables: from the environment, else from Git's configuration.
pub(crate) async fn git_identity(context: &Context) -> BTreeMap<String, String> {
    const NAMES: [&str; 4] = ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"];
    let mut identity: BTreeMap<String, String> = NAMES
        .into_iter()
        .filter_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()).map(|v| (name.to_owned(), v)))
        .collect();
    if identity.len() == NAMES.len() || context.settings.inside().is_some() {
        return identity;
    }
    let asked = tokio::process::Command::new("git")
        .args(["config", "--get-regexp", r"^user\.(name|email)$"])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    // Without Git, or without an identity, the workspace's Git says so where it matters: at a commit.
    let Ok(Ok(answer)) = tokio::time::timeout(std::time::Duration::from_secs(2), asked).await else { return identity };
    for line in String::from_utf8_lossy(&answer.stdout).lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        let what = if key.eq_ignore_ascii_case("user.name") { "NAME" } else { "EMAIL" };
        for role in ["AUTHOR", "COMMITTER"] {
            identity.entry(format!("GIT_{role}_{what}")).or_insert_with(|| value.to_owned());
        }
    }
    identity
}
