//! Errors as users and programs see them: what, whose fault, what to do, and whether trying again helps.

use crate::states::words;
use serde::{Deserialize, Serialize};
use std::fmt;

words!(
    /// Whose fault an error is and what kind of answer helps. `docs/errors.md` lists them.
    ProblemKind, "problem kind" {
        /// The request is malformed or breaks a rule; sending it again changes nothing.
        Invalid = "invalid",
        /// No or a wrong token.
        Unauthenticated = "unauthenticated",
        /// Not there, or not for this caller: both look the same.
        NotFound = "not_found",
        /// The thing exists, but its present state does not allow this.
        Conflict = "conflict",
        /// The caller must confirm or add something first (create a branch, force a deletion).
        Confirm = "confirm",
        /// This host's registration was replaced: stop acting.
        StaleEpoch = "stale_epoch",
        /// Not finished within the time asked for.
        Timeout = "timeout",
        /// A part that is needed does not answer now; try again.
        Unavailable = "unavailable",
        /// Something asked for was done and failed (a command, a wake).
        Failed = "failed",
        /// A defect of EnvForge.
        Internal = "internal",
        /// Wrong usage of the command line.
        Usage = "usage",
    }
);

impl ProblemKind {
    /// HTTP status of the kind.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid | Self::Usage => 400,
            Self::Unauthenticated => 401,
            Self::NotFound => 404,
            Self::Conflict | Self::Failed => 409,
            Self::Confirm => 428,
            Self::StaleEpoch => 410,
            Self::Timeout => 504,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// Exit status of the command line for the kind.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Invalid | Self::Usage | Self::Confirm => 2,
            Self::NotFound | Self::Unauthenticated => 3,
            Self::Timeout => 4,
            Self::Unavailable => 5,
            Self::Conflict | Self::Failed | Self::StaleEpoch | Self::Internal => 1,
        }
    }

    /// Whether the same request may succeed later without anyone doing anything.
    #[must_use]
    pub const fn retry_helps(self) -> bool {
        match self {
            Self::Timeout | Self::Unavailable => true,
            Self::Invalid
            | Self::Unauthenticated
            | Self::NotFound
            | Self::Conflict
            | Self::Confirm
            | Self::StaleEpoch
            | Self::Failed
            | Self::Internal
            | Self::Usage => false,
        }
    }
}

/// An error that may be shown to the person who asked. Free of secrets, tokens and addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema)]
#[error("{message}")]
pub struct Problem {
    /// What kind.
    pub kind: ProblemKind,
    /// What went wrong, in one sentence.
    pub message: String,
    /// What to do about it; empty if there is nothing.
    #[serde(default)]
    pub hint: String,
    /// Findings in a file, where the problem is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
    /// What may be chosen instead (candidates for a name).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
}

impl Problem {
    /// A problem with a message and a hint.
    pub fn new(kind: ProblemKind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: hint.into(), diagnostics: Vec::new(), candidates: Vec::new() }
    }

    /// [`ProblemKind::Invalid`].
    pub fn invalid(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ProblemKind::Invalid, message, hint)
    }

    /// [`ProblemKind::NotFound`]: the same words for "unknown" and "forbidden".
    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(
            ProblemKind::NotFound,
            format!("{what} does not exist, or you may not see it"),
            "`envforge ls` shows the workspaces you can open",
        )
    }

    /// [`ProblemKind::Unavailable`].
    pub fn unavailable(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ProblemKind::Unavailable, message, hint)
    }

    /// [`ProblemKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(
            ProblemKind::Internal,
            message,
            "this is a defect of EnvForge: `envforge doctor` shows where the logs are",
        )
    }

    /// The same problem with candidates.
    #[must_use]
    pub fn with_candidates(mut self, candidates: Vec<String>) -> Self {
        self.candidates = candidates;
        self
    }
}

/// The JSON form of every error: `{"error": {...}}`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// The problem.
    pub error: Problem,
}

/// One finding in a file a user wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Diagnostic {
    /// The file, as the user knows it (`backend/envforge.yml`).
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub reason: String,
    /// How to mend it.
    pub mend: String,
    /// The lines around it with a marker, ready to print; may be empty.
    #[serde(default)]
    pub snippet: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.reason)?;
        if !self.snippet.is_empty() {
            write!(f, "\n{}", self.snippet.trim_end())?;
        }
        if !self.mend.is_empty() {
            write!(f, "\n  mend: {}", self.mend)?;
        }
        Ok(())
    }
}
