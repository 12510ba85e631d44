//! The inbox of a workspace: what its services sent. Read from its host, by whoever may open the shell.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Someone who sent or gets a mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Display name; empty where none was given.
    pub name: String,
    /// `ada@example.com`.
    pub address: String,
}

/// One mail, as it stands in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailSummary {
    /// Names it in this inbox.
    pub id: String,
    /// Who sent it.
    pub from: Address,
    /// Who gets it.
    pub to: Vec<Address>,
    /// Subject.
    pub subject: String,
    /// When it arrived.
    pub received_at: Timestamp,
    /// Octets as it came.
    pub size: u64,
    /// Files it carries.
    pub attachments: u64,
    /// The beginning of its text.
    pub snippet: String,
}

/// An inbox, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbox {
    /// How many there are in all.
    pub total: u64,
    /// The newest of them.
    pub messages: Vec<MailSummary>,
}

/// A file of a mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the file.
    pub name: String,
    /// Media type.
    pub content_type: String,
    /// Octets.
    pub size: u64,
}

/// One mail, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mail {
    /// Names it in this inbox.
    pub id: String,
    /// Who sent it.
    pub from: Address,
    /// Who gets it.
    pub to: Vec<Address>,
    /// Who gets a copy.
    pub cc: Vec<Address>,
    /// Subject.
    pub subject: String,
    /// Its own date.
    pub date: Timestamp,
    /// Octets as it came.
    pub size: u64,
    /// Plain text; made from the HTML where it has none.
    pub text: String,
    /// HTML; empty where it has none.
    pub html: String,
    /// Files.
    pub attachments: Vec<Attachment>,
}
