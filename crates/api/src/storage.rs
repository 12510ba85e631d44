//! What people ask of a workspace's storage: objects listed, read, written and removed, without any key at their end.

use crate::names::ServiceName;
use serde::{Deserialize, Serialize};

/// The first message of a stream of storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStart {
    /// Whose storage, where each service has its own.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// What is asked.
    pub act: ObjectAct,
}

/// What is asked. Keys are as they are: nothing in one leads anywhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum ObjectAct {
    /// Which there are; an [`ObjectList`] in JSON follows as standard output.
    List {
        /// Keys that begin so.
        #[serde(default)]
        prefix: String,
    },
    /// What is in one; its octets follow as standard output.
    Get {
        /// Which.
        key: String,
    },
    /// Write one, whole or not at all, from standard input.
    Put {
        /// Which.
        key: String,
    },
    /// Remove one.
    Remove {
        /// Which.
        key: String,
    },
}

/// What a bucket holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectList {
    /// Its name.
    pub bucket: String,
    /// Where services of the workspace reach it.
    pub endpoint: String,
    /// By key.
    pub objects: Vec<ObjectView>,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectView {
    /// Its key.
    pub key: String,
    /// Octets.
    pub size: u64,
}
