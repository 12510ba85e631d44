//! Ports of a workspace, carried to whoever may open its shell: one stream for each connection, both directions at once,
//! each with an end of its own, and each as fast as its slower end.
//!
//! What can be reached is what the workspace declared: ports of services, and servers of its own data services. A
//! runtime that sleeps is not woken by it, and a connection keeps none awake: the supervisor dials, so that without one
//! there is no connection.

use super::{
    channel::{Cut, In, Out, Said},
    client,
    routes::Api,
};
use crate::daemon::{hub::Workspace, values::Values};
use envforge_api::{
    dial::{self, AskInside},
    forward::{Forwarded, Target},
    names::ServiceName,
    problem::{Problem, ProblemKind},
    resource::ResourceKind,
    secret::Secret,
    stream::{Control, ResourceClient, channel},
    tunnel::NotOpened,
};
use std::{io, path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
};

/// Octets carried at once.
const AT_ONCE: usize = 64 << 10;

/// What a stream is to lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// `None`: no name of anything.
    pub(super) target: Option<Target>,
    /// Whose data service, where each service has its own.
    pub(super) service: Option<ServiceName>,
}

/// What it leads to in an awake workspace.
///
/// # Errors
/// When there is no such thing, or it is not there now.
pub(super) fn find(workspace: &Workspace, dir: &Path, wanted: &Wanted) -> Result<Forwarded, Problem> {
    match &wanted.target {
        Some(Target::Resource(kind)) => {
            let resource = ResourceClient { kind: *kind, service: wanted.service.clone() };
            client::ready(workspace, &resource)?;
            Ok(of_resource(workspace, dir, &resource))
        }
        Some(Target::Service { name, port }) => of_service(workspace, name, port.as_ref()),
        None => Err(Problem::not_found("this target")),
    }
}

fn of_resource(workspace: &Workspace, dir: &Path, wanted: &ResourceClient) -> Forwarded {
    let fields = Values::of(dir).fields(wanted.kind, wanted.service.as_ref(), None);
    let field = |name: &str| fields.get(name).map(|value| Secret::expose(value).to_owned());
    let snapshot = workspace.runtime.borrow().snapshot.clone();
    let consumer = snapshot.and_then(|snapshot| {
        let this = snapshot.resources.into_iter().find(|r| r.kind == wanted.kind && r.service == wanted.service);
        this.and_then(|resource| resource.consumers.into_iter().next())
    });
    let port = wanted.kind.port();
    match wanted.kind {
        ResourceKind::Database => Forwarded { port, user: field("user"), name: field("name"), consumer },
        ResourceKind::Cache | ResourceKind::Queue => {
            let url = field("url").unwrap_or_default();
            let number = url.rsplit_once('/').map(|(_, number)| number.to_owned());
            Forwarded { port, name: number, ..Forwarded::default() }
        }
        ResourceKind::Storage => Forwarded { port, name: field("bucket"), consumer, ..Forwarded::default() },
        ResourceKind::Mail => Forwarded { port, ..Forwarded::default() },
    }
}

fn of_service(workspace: &Workspace, name: &ServiceName, port: Option<&ServiceName>) -> Result<Forwarded, Problem> {
    workspace.intent.borrow().spec.has(name)?;
    if workspace.runtime.borrow().supervisor.is_none() {
        return Err(asleep(workspace.intent.borrow().slug.as_str()));
    }
    let faces = workspace.faces.borrow();
    let ports = faces.iter().find(|face| &face.service == name).map(|face| (&face.ports, face.main.as_ref()));
    let Some((ports, main)) = ports.filter(|(ports, _)| !ports.is_empty()) else {
        let hint = "declare one in its envforge.yml: `ports: { http: 3000 }`";
        return Err(Problem::new(ProblemKind::NotFound, format!("service `{name}` has no port"), hint));
    };
    let only = || ports.keys().next().filter(|_| ports.len() == 1);
    let found = port.or(main).or_else(only).and_then(|port| ports.get(port));
    found.map(|port| Forwarded { port: *port, ..Forwarded::default() }).ok_or_else(|| {
        let message = match port {
            Some(port) => format!("service `{name}` has no port `{port}`"),
            None => format!("service `{name}` has several ports, and none of them is `http`"),
        };
        let all = ports.keys().map(|port| format!("{name}.{port}")).collect();
        Problem::new(ProblemKind::NotFound, message, "name one of them").with_candidates(all)
    })
}

fn asleep(slug: &str) -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        format!("the runtime of {slug} sleeps"),
        format!("`envforge wake {slug}` wakes it"),
    )
}

/// A connection inside the workspace.
async fn connect(workspace: &Workspace, wanted: &Wanted, port: u16) -> Result<TcpStream, Problem> {
    let slug = workspace.intent.borrow().slug.to_string();
    let target = wanted.target.as_ref().map(ToString::to_string).unwrap_or_default();
    let sandbox = workspace.sandbox.borrow().clone().ok_or_else(|| asleep(&slug))?;
    let dialled = dial::dial(&sandbox.dial_socket(), &AskInside { port }, Duration::ZERO).await;
    let dialled = dialled.map_err(|why| match why {
        // The supervisor ended between two looks.
        NotOpened::Away | NotOpened::Asleep => asleep(&slug),
        NotOpened::NotListening | NotOpened::Refused | NotOpened::Unknown => Problem::new(
            ProblemKind::Failed,
            format!("nothing takes connections on port {port} of {target} in {slug}"),
            format!("`envforge why {slug} {target}` says more"),
        ),
    })?;
    let adopted = dialled.socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(dialled.socket));
    adopted.map_err(|error| Problem::internal(format!("a connection could not be used: {error}")))
}

/// Carries one connection until both directions have ended; 0, or 1 when either side broke it off.
pub(super) async fn carry(
    api: &Api,
    workspace: &Workspace,
    wanted: &Wanted,
    out: &Out,
    input: &mut In<'_>,
) -> Result<i32, Cut> {
    let dir = api.hub.installation.workspace_dir(&workspace.id);
    workspace.settled().await;
    let found = find(workspace, &dir, wanted)?;
    let stream = connect(workspace, wanted, found.port).await?;
    // However this ends before both directions have, the server must not take it for a good end.
    let broken = stream.set_zero_linger();
    broken.map_err(|error| Problem::internal(format!("a connection could not be used: {error}")))?;
    out.control(&Control::Started).await?;
    let (from, to) = stream.into_split();
    let sent = Notify::new();
    let both = async {
        let from = back(from, out).await?;
        sent.notified().await;
        // Closed in good order from here on; nothing is lost if the machine refuses.
        let _ = rustix::net::sockopt::set_socket_linger(from.as_ref(), None);
        Ok(0)
    };
    let ended = tokio::select! {
        ended = both => ended,
        broken = there(input, to, &sent) => Err(broken),
    };
    ended.or_else(|broken| match broken {
        Broken::Stream(cut) => Err(cut),
        Broken::Server => Ok(1),
    })
}

/// Which end broke.
enum Broken {
    Stream(Cut),
    Server,
}

impl From<Cut> for Broken {
    fn from(cut: Cut) -> Self {
        Self::Stream(cut)
    }
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Server
    }
}

/// From the caller to the server; says when the caller has sent all. What follows then are renewals alone, and that the
/// caller is gone: it ends in no other way.
async fn there(input: &mut In<'_>, mut to: OwnedWriteHalf, sent: &Notify) -> Broken {
    loop {
        let written = match input.next().await {
            Ok(Said::Stdin(octets)) if octets.is_empty() => {
                sent.notify_one();
                to.shutdown().await
            }
            Ok(Said::Stdin(octets)) => to.write_all(&octets).await,
            Ok(Said::Resize(_) | Said::Signal(_) | Said::Identity(_)) => Ok(()),
            Err(cut) => return cut.into(),
        };
        if let Err(error) = written {
            return error.into();
        }
    }
}

/// From the server to the caller.
async fn back(mut from: OwnedReadHalf, out: &Out) -> Result<OwnedReadHalf, Broken> {
    let mut octets = vec![0; AT_ONCE];
    loop {
        let read = from.read(&mut octets).await?;
        out.data(channel::STDOUT, &octets[..read]).await?;
        if read == 0 {
            return Ok(from);
        }
    }
}
