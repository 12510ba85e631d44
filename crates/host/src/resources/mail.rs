//! Mailpit: takes every mail of a workspace's services and delivers none.
//!
//! Services reach its SMTP port alone. Its inbox is a unix socket below the data that only its own user can open, so that
//! no link, no other port of the workspace and no other user of the machine leads to it; the host reads it for whoever
//! may (see [`inbox`]).

pub mod inbox;

use super::{
    Context, Driver, Quiet, Watch, find_program,
    rest::{self, Look, Rest},
};
use crate::system::{files, sandbox::DATA};
use envforge_api::{receipt::Holds, resource::ResourceKind, states::Trouble};
use futures_util::future::LocalBoxFuture;
use nix::{sys::signal::Signal, unistd::Pid};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// The driver.
#[derive(Debug)]
pub struct Mailpit;

/// Messages kept; the oldest go first.
const KEPT: &str = "10000";

/// Its directory below the workspace's data.
const DIR: &str = "mailpit";

fn program() -> Result<PathBuf, Trouble> {
    find_program("mailpit", &[]).ok_or_else(|| {
        let hint = "GOBIN=/usr/local/bin go install github.com/axllent/mailpit@v1.27.11, then wake again";
        Trouble::new("this host has no mailpit", hint)
    })
}

/// What it is started with: where it answers for its inbox and where it takes mail.
fn arguments(inbox: &str, smtp: &str) -> Vec<String> {
    let settings = [
        ("--listen", format!("unix:{DATA}/{DIR}/{inbox}:0600")),
        ("--smtp", smtp.to_owned()),
        ("--database", format!("{DATA}/{DIR}/mailpit.db")),
        ("--max", KEPT.to_owned()),
    ];
    let flags = [
        // A service may send a user and password as it would elsewhere: they mean nothing here.
        "--smtp-auth-accept-any",
        "--smtp-auth-allow-insecure",
        "--smtp-disable-rdns",
        "--disable-version-check",
        "--quiet",
    ];
    let pairs = settings.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    pairs.chain(flags.map(ToOwned::to_owned)).collect()
}

impl Driver for Mailpit {
    fn name(&self) -> &'static str {
        "mail"
    }

    fn program(&self, _home: &Path) -> Result<PathBuf, Trouble> {
        program()
    }

    fn ensure<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async {
            super::is_free(ResourceKind::Mail.port())?;
            let dir = context.sandbox.dir.join("data").join(DIR);
            files::ensure_dir_in_theirs(&dir, 0o700, &context.sandbox.accounts.resource)
                .map_err(|e| Trouble::new(e.to_string(), e.hint))
        })
    }

    fn arguments(&self, _context: &Context) -> Vec<String> {
        // Clients take one of the two addresses of `localhost` and do not try the other. It listens on one socket alone, so
        // that is every address; nobody outside reaches into the workspace's network.
        arguments(inbox::SOCKET, &format!("[::]:{}", ResourceKind::Mail.port()))
    }

    fn answers<'a>(&'a self, _context: &'a Context) -> LocalBoxFuture<'a, bool> {
        Box::pin(async {
            let greeted = async {
                let mut stream = TcpStream::connect(("127.0.0.1", ResourceKind::Mail.port())).await.ok()?;
                let mut greeting = [0_u8; 4];
                stream.read_exact(&mut greeting).await.ok()?;
                (&greeting == b"220 ").then_some(())
            };
            greeted.await.is_some()
        })
    }

    fn prepare<'a>(&'a self, _context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn wipe<'a>(&'a self, context: &'a Context, _kind: ResourceKind) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async move {
            let emptied = async {
                match inbox::open(&context.sandbox).await? {
                    Some(inbox) => inbox.empty().await,
                    None => Ok(()),
                }
            };
            emptied.await.map_err(|problem| Trouble::new(problem.message, problem.hint))
        })
    }

    fn stop<'a>(&'a self, _context: &'a Context, pid: Pid) -> LocalBoxFuture<'a, ()> {
        super::signal(pid, Signal::SIGTERM);
        Box::pin(std::future::ready(()))
    }

    fn count<'a>(&'a self, context: &'a Context, quiet: Quiet<'a>) -> LocalBoxFuture<'a, Option<Holds>> {
        Box::pin(async move {
            let until = quiet.await;
            let asked = async {
                match inbox::open(&context.sandbox).await.ok()? {
                    Some(inbox) => inbox.total().await.ok(),
                    None => Some(0),
                }
            };
            let messages = tokio::time::timeout_at(until.into(), asked).await.ok()??;
            Some(Holds::Messages { messages: Some(messages) })
        })
    }

    fn at_rest(&self, context: &Context, until: Instant) -> Look {
        let sockets = |path: &Path| path.extension().is_some_and(|extension| extension == "sock");
        match rest::look(&context.sandbox.dir.join("data").join(DIR), sockets, until) {
            // Whoever reads the inbox of a workspace that sleeps does it with a server.
            Look::Found(rest) => Look::Found(Rest { read_by_others: true, ..rest }),
            nothing => nothing,
        }
    }

    fn watch(&self, _context: &Context) -> Option<Box<dyn Watch>> {
        None
    }
}
