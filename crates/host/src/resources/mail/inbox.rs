//! Reading the inbox, awake or asleep.
//!
//! Awake, the workspace's Mailpit answers on its socket. Asleep, one is started for as long as somebody reads, with no port
//! at all: it takes no mail, and the runtime stays asleep.

use super::{DIR, arguments, program};
use crate::system::{
    enter::{As, Entry, base_environment},
    files::{self, Beneath},
    sandbox::{DATA, Sandbox},
    spawn::{Process, Stream},
};
use envforge_api::{
    client::{Client, Endpoint},
    mail::{Address, Attachment, Inbox, Mail, MailSummary},
    problem::{Problem, ProblemKind},
    time::Timestamp,
};
use hyper::{Method, body::Bytes};
use nix::{sys::signal::Signal, unistd::Pid};
use serde::Deserialize;
use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

/// The socket of the one that takes mail.
pub(super) const SOCKET: &str = "inbox.sock";
/// Most messages of a list.
const MOST: u32 = 200;
/// How long one that is started for reading may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// Seconds after which one that is started for reading ends in any case.
const LONGEST: &str = "30";

/// An inbox that answers for as long as this is kept.
#[derive(Debug)]
pub struct Reading {
    client: Client,
    /// The way to the socket, however long the path of the home is and whatever is put in its place.
    _socket: OwnedFd,
    /// Ends with this.
    _server: Option<Server>,
}

/// A Mailpit for reading alone. It removes its sockets when it is told to end.
#[derive(Debug)]
struct Server(Process);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok());
        pid.map(Pid::from_raw).into_iter().for_each(|pid| crate::resources::signal(pid, Signal::SIGTERM));
    }
}

fn failed(doing: &str, error: impl std::fmt::Display, hint: &str) -> Problem {
    Problem::new(ProblemKind::Failed, format!("cannot {doing}: {error}"), hint)
}

/// Opens the inbox; `None` where no mail was ever taken.
///
/// # Errors
/// When nothing can read it: no program, no answer.
pub async fn open(sandbox: &Sandbox) -> Result<Option<Reading>, Problem> {
    let dir = sandbox.dir.join("data").join(DIR);
    let theirs = match Beneath::open(&dir) {
        Ok(theirs) => theirs,
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open the inbox", error, "look at the disk")),
    };
    // The directory is its server's user's, whose links must not lead the host to the inbox of another workspace.
    let reached = async |name: &str| {
        let socket = theirs.socket(Path::new(name)).ok()?;
        let way = files::way_to(&socket);
        UnixStream::connect(&way).await.ok()?;
        Some((Client::new(Endpoint::Unix(way), None), socket))
    };
    if let Some((client, socket)) = reached(SOCKET).await {
        return Ok(Some(Reading { client, _socket: socket, _server: None }));
    }
    if !dir.join("mailpit.db").exists() {
        return Ok(None);
    }
    // Two who read at once have one each.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [inbox, smtp] = ["inbox", "smtp"].map(|what| format!("reader-{}-{number}-{what}.sock", std::process::id()));
    let program = program().map_err(|t| Problem::new(ProblemKind::Failed, t.reason, t.hint))?;
    // Whatever becomes of this daemon, it does not stay.
    let mut argv = vec!["timeout".to_owned(), LONGEST.to_owned(), program.to_string_lossy().into_owned()];
    argv.extend(arguments(&inbox, &format!("unix:{DATA}/{DIR}/{smtp}:0600")));
    let entry = Entry::new(sandbox, As::Resource, &sandbox.cgroups.shell, DATA);
    let environment = base_environment(&sandbox.accounts.resource);
    let process = entry
        .start(&argv, &environment, [Stream::Null, Stream::Null, Stream::Null], false)
        .map_err(|e| failed("read the inbox", &e, "is the workspace at its limit of processes?"))?;
    let server = Server(process);
    let begun = Instant::now();
    let (client, socket) = loop {
        if let Some(reached) = reached(&inbox).await {
            break reached;
        }
        if begun.elapsed() > PATIENCE {
            let hint = "wake the workspace and try again; its log `mail` may say why";
            return Err(failed("read the inbox", "mailpit does not answer", hint));
        }
        sleep(Duration::from_millis(2)).await;
    };
    Ok(Some(Reading { client, _socket: socket, _server: Some(server) }))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TheirAddress {
    name: String,
    address: String,
}

impl From<TheirAddress> for Address {
    fn from(theirs: TheirAddress) -> Self {
        Self { name: theirs.name, address: theirs.address }
    }
}

fn addresses(theirs: Option<Vec<TheirAddress>>) -> Vec<Address> {
    theirs.unwrap_or_default().into_iter().map(Address::from).collect()
}

/// A mail without a sender has none.
fn sender(theirs: Option<TheirAddress>) -> Address {
    theirs.map_or_else(|| Address { name: String::new(), address: String::new() }, Address::from)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TheirSummary {
    #[serde(rename = "ID")]
    id: String,
    from: Option<TheirAddress>,
    to: Option<Vec<TheirAddress>>,
    subject: String,
    created: Timestamp,
    size: u64,
    attachments: u64,
    snippet: String,
}

#[derive(Debug, Deserialize)]
struct TheirList {
    total: u64,
    messages: Vec<TheirSummary>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TheirFile {
    file_name: String,
    content_type: String,
    size: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TheirMail {
    #[serde(rename = "ID")]
    id: String,
    from: Option<TheirAddress>,
    to: Option<Vec<TheirAddress>>,
    cc: Option<Vec<TheirAddress>>,
    subject: String,
    date: Timestamp,
    size: u64,
    text: String,
    #[serde(rename = "HTML")]
    html: String,
    attachments: Option<Vec<TheirFile>>,
}

impl Reading {
    /// The newest messages.
    ///
    /// # Errors
    /// When the server does not answer as it should.
    pub async fn list(&self) -> Result<Inbox, Problem> {
        let list: TheirList = self.ask(&format!("/api/v1/messages?start=0&limit={MOST}")).await?;
        let summary = |theirs: TheirSummary| MailSummary {
            id: theirs.id,
            from: sender(theirs.from),
            to: addresses(theirs.to),
            subject: theirs.subject,
            received_at: theirs.created,
            size: theirs.size,
            attachments: theirs.attachments,
            snippet: theirs.snippet,
        };
        Ok(Inbox { total: list.total, messages: list.messages.into_iter().map(summary).collect() })
    }

    /// How many there are.
    ///
    /// # Errors
    /// When the server does not answer as it should.
    pub(super) async fn total(&self) -> Result<u64, Problem> {
        let list: TheirList = self.ask("/api/v1/messages?start=0&limit=1").await?;
        Ok(list.total)
    }

    /// One message; `latest` is the newest. `None` when there is none of that name.
    ///
    /// # Errors
    /// When the server does not answer as it should.
    pub async fn message(&self, id: &str) -> Result<Option<Mail>, Problem> {
        // Its names are letters and digits; anything else names nothing, and must not become another path.
        if id.is_empty() || !id.bytes().all(|octet| octet.is_ascii_alphanumeric()) {
            return Ok(None);
        }
        let mail: TheirMail = match self.ask(&format!("/api/v1/message/{id}")).await {
            Ok(mail) => mail,
            Err(problem) if problem.kind == ProblemKind::NotFound => return Ok(None),
            Err(problem) => return Err(problem),
        };
        let file = |theirs: TheirFile| Attachment {
            name: theirs.file_name,
            content_type: theirs.content_type,
            size: theirs.size,
        };
        Ok(Some(Mail {
            id: mail.id,
            from: sender(mail.from),
            to: addresses(mail.to),
            cc: addresses(mail.cc),
            subject: mail.subject,
            date: mail.date,
            size: mail.size,
            text: mail.text,
            html: mail.html,
            attachments: mail.attachments.unwrap_or_default().into_iter().map(file).collect(),
        }))
    }

    /// Removes every message.
    ///
    /// # Errors
    /// When the server does not answer as it should.
    pub(super) async fn empty(&self) -> Result<(), Problem> {
        // It answers with a word that is no JSON.
        let asked = self.client.raw(Method::DELETE, "/api/v1/messages", Bytes::new());
        match timeout(PATIENCE, asked).await {
            Ok(Ok((200..=299, _))) => Ok(()),
            Ok(Ok((status, _))) => Err(failed("empty the inbox", format!("status {status}"), "try again")),
            Ok(Err(problem)) => Err(problem),
            Err(_) => Err(failed("empty the inbox", "mailpit does not answer", "try again")),
        }
    }

    async fn ask<A: serde::de::DeserializeOwned>(&self, path: &str) -> Result<A, Problem> {
        match timeout(PATIENCE, self.client.get(path)).await {
            Ok(answer) => answer,
            Err(_) => Err(failed("read the inbox", "mailpit does not answer", "try again")),
        }
    }
}
