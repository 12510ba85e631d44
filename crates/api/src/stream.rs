//! Streams between the command line and a host: one WebSocket, binary messages, one octet of channel first.
//!
//! | channel | from | payload |
//! |---|---|---|
//! | 0 | both | a [`Control`] message in JSON |
//! | 1 | client | octets for standard input; an empty payload closes it |
//! | 2 | host | octets of standard output (or the terminal); of a port an empty payload says that no more come |
//! | 3 | host | octets of standard error |
//!
//! Endpoints of the host's stream API, all `GET` with `Authorization: Bearer <capability>`:
//! `/host/v1/workspaces/{id}/attach`, `…/exec`, `…/runs/{command}/output`, `…/logs`, `…/storage`, `…/ports/{target}/connect`; `…/env`,
//! `…/mail`, `…/mail/{message}` and `…/ports/{target}` are plain JSON.

use crate::{names::ServiceName, problem::Problem, resource::ResourceKind, storage::ObjectStart, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What stands before these endpoints on a gateway's base host, for callers on other machines than the host.
pub const GATEWAY_PREFIX: &str = "/.envforge";

/// Channel octets.
pub mod channel {
    /// [`super::Control`] in JSON.
    pub const CONTROL: u8 = 0;
    /// Standard input.
    pub const STDIN: u8 = 1;
    /// Standard output, or the terminal.
    pub const STDOUT: u8 = 2;
    /// Standard error.
    pub const STDERR: u8 = 3;
}

/// Out-of-band messages of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Control {
    /// Client, first message of an attach: the terminal.
    Attach(AttachStart),
    /// Client, first message of an exec.
    Exec(ExecStart),
    /// Client, first message of a log stream.
    Logs(LogQuery),
    /// Client, first message about storage.
    Storage(ObjectStart),
    /// Client: the window changed.
    Resize {
        /// Size in characters.
        size: TerminalSize,
    },
    /// Client: deliver a signal (`INT`, `TERM`, `HUP`, `QUIT`) to the command.
    Signal {
        /// Name without `SIG`.
        name: String,
    },
    /// Client: the identity that [`AttachStart::identity_follows`] promised.
    Identity {
        /// As [`AttachStart::git_identity`].
        git_identity: BTreeMap<String, String>,
    },
    /// Client: a newer capability for the same session.
    Renew {
        /// The token.
        token: String,
    },
    /// Host: what is happening before the stream begins (`cloning backend`); for a terminal's status line.
    Progress {
        /// One short line.
        message: String,
    },
    /// Host: the stream begins here.
    Started,
    /// Host, last message: the command ended.
    Exit {
        /// Its exit status (128 + signal when killed).
        code: i32,
    },
    /// Host, last message: it could not be done.
    Failed {
        /// Why.
        problem: Problem,
    },
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// How to attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachStart {
    /// The caller's terminal.
    pub size: TerminalSize,
    /// Value of TERM.
    pub term: String,
    /// Run this in a new tmux window; empty = just attach.
    #[serde(default)]
    pub command: Vec<String>,
    /// Git identity of the person attached: `GIT_AUTHOR_NAME`, … of the caller. Set in the tmux session's
    /// environment, never written to the workspace.
    #[serde(default)]
    pub git_identity: BTreeMap<String, String>,
    /// The identity comes as [`Control::Identity`]: a session that is there already need not wait for it.
    #[serde(default)]
    pub identity_follows: bool,
}

/// A client of a resource: the host knows its program and tells it how to connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceClient {
    /// Which.
    pub kind: ResourceKind,
    /// The service that has it for itself; absent: the one of the whole workspace.
    #[serde(default)]
    pub service: Option<ServiceName>,
}

/// A shell-layer command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStart {
    /// Program and arguments; of a [`ResourceClient`] the arguments alone.
    pub argv: Vec<String>,
    /// Run the client of a resource, which must be awake.
    #[serde(default)]
    pub client: Option<ResourceClient>,
    /// Wants a terminal of this size.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// Value of TERM.
    #[serde(default)]
    pub term: Option<String>,
    /// Git identity of the caller (environment variables).
    #[serde(default)]
    pub git_identity: BTreeMap<String, String>,
}

/// What to read of the logs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogQuery {
    /// Sources; empty = all.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Only the last so many lines before following.
    #[serde(default)]
    pub tail: Option<usize>,
    /// Keep going.
    #[serde(default)]
    pub follow: bool,
    /// This level and worse.
    #[serde(default)]
    pub level: Option<LogLevel>,
    /// From here.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Up to here.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
}

/// Severity of a log line, guessed from its text for plain output; mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Details.
    Debug,
    /// Ordinary.
    Info,
    /// Worth a look.
    Warn,
    /// Broken.
    Error,
}

/// One line of a log: the form on disk (one JSON object a line), on the wire and in `logs --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogLine {
    /// When it was read from the process.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// `web`, `backend.mailer`, `database`, `setup`, `system`.
    pub source: String,
    /// Severity.
    pub level: LogLevel,
    /// The line, redacted, without its line feed.
    pub message: String,
}

/// What `…/env` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServiceEnv {
    /// The service.
    pub service: ServiceName,
    /// Variables in the order of the file; values masked where they hold a secret, unless revealed.
    pub variables: Vec<(String, String)>,
}
