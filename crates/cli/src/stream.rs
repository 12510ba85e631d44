//! Streams to a host: terminal, commands, logs, output of runs. `envforge_api::stream` says what goes over them.

pub(crate) mod attach;
pub(crate) mod cache;
pub(crate) mod exec;
pub(crate) mod forward;
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

/// How the host that a grant opens is reached.
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    /// By a socket of this machine.
    Socket(&'a str),
    /// By the gateway that this is the base of.
    Gateway(&'a str),
}

/// Picks it; `is_here` says whether a socket is on this machine. Pure.
fn way<'a>(target: &Target, grant: &'a Grant, is_here: impl Fn(&str) -> bool) -> Option<Way<'a>> {
    let (socket, gateway) = (grant.local_socket.as_deref(), grant.gateway.as_deref());
    match target {
        Target::Inside { .. } => Some(Way::Socket(INSIDE_SOCKET)),
        // Its host may be on its way back.
        Target::Local if socket.is_some() => socket.map(Way::Socket),
        Target::Local | Target::Remote { .. } => match socket.filter(|socket| is_here(socket)) {
            Some(socket) => Some(Way::Socket(socket)),
            None => gateway.map(Way::Gateway),
        },
    }
}

/// A client of the host that a grant opens.
///
/// # Errors
/// [`envforge_api::problem::ProblemKind::Unavailable`] when the host is on another machine and no gateway leads there.
pub(crate) fn host(context: &Context, grant: &Grant) -> Result<Client, Problem> {
    let client = match way(&context.settings.target, grant, |socket| std::path::Path::new(socket).exists()) {
        Some(Way::Socket(socket)) => Client::new(Endpoint::Unix(socket.into()), Some(grant.token.clone())),
        Some(Way::Gateway(base)) => Client::by_gateway(base, grant.token.clone())?,
        None => {
            return Err(Problem::unavailable(
                "the workspace lies on a host that cannot be reached from here",
                "run this on the host's machine",
            ));
        }
    };
    Ok(client.with_patience(crate::context::RESTART))
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

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::{
        ids::{HostId, WorkspaceId},
        secret::Secret,
        time::Timestamp,
    };

    #[test]
    fn a_host_is_reached_by_its_socket_where_that_is_on_this_machine_and_by_the_gateway_otherwise() {
        let grant = |socket: Option<&str>, gateway: Option<&str>| Grant {
            host: HostId::generate(),
            workspace: WorkspaceId::generate(),
            local_socket: socket.map(ToOwned::to_owned),
            gateway: gateway.map(ToOwned::to_owned),
            token: Secret::new("t".into()),
            expires_at: Timestamp::UNIX_EPOCH,
        };
        let remote = Target::Remote { endpoint: Endpoint::Unix("/c".into()), token: None };
        let (here, elsewhere) = (|_: &str| true, |_: &str| false);
        let both = grant(Some("/s"), Some("https://b"));
        assert_eq!(way(&remote, &both, here), Some(Way::Socket("/s")));
        assert_eq!(way(&remote, &both, elsewhere), Some(Way::Gateway("https://b")));
        assert_eq!(way(&Target::Local, &both, elsewhere), Some(Way::Socket("/s")), "it comes back");
        assert_eq!(way(&Target::Local, &grant(None, Some("https://b")), here), Some(Way::Gateway("https://b")));
        assert_eq!(way(&remote, &grant(Some("/s"), None), elsewhere), None, "a control plane of before");
        let inside = Target::Inside { workspace: "w".into() };
        assert_eq!(way(&inside, &both, elsewhere), Some(Way::Socket(INSIDE_SOCKET)));
    }
}
