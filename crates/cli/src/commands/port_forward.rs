//! `port-forward`: a port on 127.0.0.1 that leads into a workspace, for tools of one's own machine.
//!
//! It wakes once, at its start. When the runtime sleeps later, connections are refused with a word in the terminal, and
//! pass again once something else woke it. No password is printed: what needs one says how to see it.

use super::{services::service, waking};
use crate::{
    args::ports::PortForwardArgs,
    context::Context,
    stream::forward::{Forward, Source},
};
use envforge_api::{
    forward::{Forwarded, Target},
    names::{ServiceName, Slug},
    problem::{Problem, ProblemKind},
    public::WorkspaceView,
    resource::ResourceKind,
    states::{ResourceState, RuntimeState, ServiceState},
};
use serde::Serialize;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};
use tokio::net::TcpListener;

/// What is said once it listens.
#[derive(Debug, Serialize)]
struct Listening<'a> {
    workspace: &'a Slug,
    target: String,
    address: SocketAddr,
    local_port: u16,
    #[serde(flatten)]
    leads_to: &'a Forwarded,
}

/// Reads `[WS] TARGET [LOCAL]`.
fn read(words: &[String]) -> Result<(Option<&str>, Target, Option<u16>), Problem> {
    let is_number = |word: &&String| word.bytes().all(|octet| octet.is_ascii_digit());
    let (words, local) = match words {
        [before @ .., last] if !before.is_empty() && is_number(&last) => {
            let local = last.parse::<u16>().ok().filter(|port| *port > 0);
            let usage = || Problem::new(ProblemKind::Usage, format!("`{last}` is no port"), "1 to 65535");
            (before, Some(local.ok_or_else(usage)?))
        }
        words => (words, None),
    };
    match words {
        [target] => Ok((None, target.parse()?, local)),
        [ws, target] => Ok((Some(ws), target.parse()?, local)),
        _ => Err(Problem::new(
            ProblemKind::Usage,
            "what is to be forwarded?",
            "envforge port-forward [WS] TARGET [LOCAL]",
        )),
    }
}

/// Whether there is something to be said of the target: it is there, or it will not come.
fn is_there(view: &WorkspaceView, target: &Target, owner: Option<&ServiceName>) -> bool {
    let awake = view.runtime.stated.state == RuntimeState::Awake;
    match target {
        Target::Resource(kind) => {
            let found = view.resources.iter().find(|r| r.kind == *kind && r.service.as_ref() == owner);
            found.map_or(awake, |resource| resource.stated.state != ResourceState::Waking)
        }
        Target::Service { name, .. } => {
            let found = view.services.iter().find(|service| service.name == name.as_str());
            found.map_or(awake, |service| match service.stated.state {
                ServiceState::Healthy => true,
                ServiceState::Starting => false,
                ServiceState::Stopped | ServiceState::Unhealthy | ServiceState::Crashed => awake,
            })
        }
    }
}

async fn listen(local: Option<u16>, same: u16) -> Result<TcpListener, Problem> {
    let at = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let bound = match local {
        Some(port) => at(port).await,
        None => match at(same).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
                at(0).await
            }
            bound => bound,
        },
    };
    bound.map_err(|error| {
        let port = local.map_or_else(|| "a port".to_owned(), |port| format!("port {port}"));
        let hint = "name another one, or none";
        Problem::new(ProblemKind::Failed, format!("{port} of 127.0.0.1 cannot be listened on: {error}"), hint)
    })
}

/// How a tool connects, in a line or two.
fn how(workspace: &Slug, target: &Target, local: u16, to: &Forwarded) -> String {
    let reveal = || match &to.consumer {
        Some(consumer) => format!("`envforge env {workspace} --service {consumer} --reveal`"),
        None => format!("`envforge env {workspace} --service S --reveal`"),
    };
    let word = |text: &Option<String>| text.clone().unwrap_or_default();
    match target {
        Target::Resource(ResourceKind::Database) => format!(
            "psql -h 127.0.0.1 -p {local} -U {} -d {}\n  the password is in what {} shows; `envforge psql {workspace}` needs none",
            word(&to.user),
            word(&to.name),
            reveal(),
        ),
        Target::Resource(ResourceKind::Cache | ResourceKind::Queue) => {
            format!("redis-cli -h 127.0.0.1 -p {local} -n {}", word(&to.name))
        }
        Target::Resource(ResourceKind::Storage) => format!(
            "S3 at http://127.0.0.1:{local}, bucket {}\n  the keys are in what {} shows; `envforge s3 {workspace}` needs none",
            word(&to.name),
            reveal(),
        ),
        Target::Resource(ResourceKind::Mail) => {
            format!("SMTP on 127.0.0.1:{local}; `envforge mail {workspace}` reads what came")
        }
        Target::Service { .. } => format!("for HTTP: http://127.0.0.1:{local}"),
    }
}

pub(super) async fn run(context: &Context, args: PortForwardArgs) -> Result<ExitCode, Problem> {
    let (ws, target, local) = read(&args.words)?;
    let owner = args.service.as_deref().map(service).transpose()?;
    let workspace = context.workspace(ws).await?;
    let forward = Forward::open(context, &workspace, Source { target: target.clone(), service: owner.clone() }).await?;
    waking::until(context, &workspace, |view| is_there(view, &target, owner.as_ref()).then_some(())).await?;
    let leads_to = forward.leads_to().await?;
    let listener = listen(local, leads_to.port).await?;
    let failed = |error: io::Error| Problem::internal(format!("the port is not known: {error}"));
    let address = listener.local_addr().map_err(failed)?;
    let listening = Listening {
        workspace: &workspace,
        target: target.to_string(),
        address,
        local_port: address.port(),
        leads_to: &leads_to,
    };
    if context.out.json {
        context.out.json_line(&listening);
    } else {
        context.out.line(&address.to_string());
        context.out.say(&format!("leads to {target} of {workspace}; Ctrl-C ends it"));
        context.out.say(&how(&workspace, &target, address.port(), &leads_to));
    }
    forward.serve(listener).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_at_the_end_is_the_port_here() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (given, ws, target, local) in [
            ("database", None, "database", None),
            ("database 15432", None, "database", Some(15432)),
            ("main web.admin", Some("main"), "web.admin", None),
            ("main mail 2525", Some("main"), "mail", Some(2525)),
        ] {
            let words = words(given);
            let (read_ws, read_target, read_local) = read(&words).expect(given);
            assert_eq!((read_ws, &*read_target.to_string(), read_local), (ws, target, local), "{given}");
        }
        for bad in ["a b c", "database 0", "database 65536", "a database x"] {
            assert_eq!(read(&words(bad)).expect_err(bad).kind, ProblemKind::Usage);
        }
    }

    #[test]
    fn what_is_told_of_a_database_has_no_password_in_it() {
        let to = Forwarded {
            port: 5432,
            user: Some("app".into()),
            name: Some("app".into()),
            consumer: Some("web".parse().expect("a name")),
        };
        let told = how(&"main".parse().expect("a slug"), &Target::Resource(ResourceKind::Database), 15432, &to);
        assert!(told.starts_with("psql -h 127.0.0.1 -p 15432 -U app -d app\n"), "{told}");
        assert!(told.contains("envforge env main --service web --reveal"), "{told}");
    }
}
