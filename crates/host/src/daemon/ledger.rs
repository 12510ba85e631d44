//! What the host must not forget, written before it acts: who it is, what it accepted, which acts it finished.
//!
//! `<home>/host/ledger/host.json` and one file for each workspace, each replaced as a whole.

use crate::system::{Result, SystemError, files};
use envforge_api::{
    capability::VerifyKey,
    command::{ActReport, LeasedCommand},
    host::WorkspaceIntent,
    ids::{CommandId, HostId, WorkspaceId},
    time::BootId,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The host itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostRecord {
    /// Who it is, once it registered.
    pub host: Option<HostId>,
    /// Capabilities are verified with these, also while the control plane is away.
    pub keys: Vec<VerifyKey>,
    /// The boot of the last start.
    pub boot: Option<BootId>,
    /// The next small number of a workspace; never given twice.
    pub next_index: u32,
    /// Acts under way: after a crash they are `interrupted`, unless they may be repeated.
    pub running: BTreeMap<CommandId, LeasedCommand>,
    /// Acts that ended and are not yet recorded by the control plane.
    pub finished: BTreeMap<CommandId, ActReport>,
}

/// One workspace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkspaceRecord {
    /// Its small number.
    pub index: u32,
    /// The newest accepted intent.
    pub intent: WorkspaceIntent,
}

/// The ledger's files.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    /// As it is on disk, but for what was noted while the disk refused.
    pub host: HostRecord,
    /// Something was noted that is not on disk yet.
    unwritten: bool,
}

impl Ledger {
    /// Opens the ledger of an installation.
    ///
    /// # Errors
    /// When a file is there and cannot be understood: acting without it could lose work.
    pub fn open(home: &Path) -> Result<(Self, Vec<WorkspaceRecord>)> {
        let dir = home.join("host").join("ledger");
        files::ensure_dir(&dir, 0o700)?;
        let host = read(&dir.join("host.json"))?.unwrap_or_default();
        let mut workspaces = Vec::new();
        let entries = fs::read_dir(&dir).map_err(|e| SystemError::new("read the ledger", e))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("ws_")
                && name.ends_with(".json")
                && let Some(record) = read(&entry.path())?
            {
                workspaces.push(record);
            }
        }
        Ok((Self { dir, host, unwritten: false }, workspaces))
    }

    /// Changes the host's record.
    ///
    /// # Errors
    /// When the disk refuses; nothing changed then.
    pub fn change(&mut self, change: impl FnOnce(&mut HostRecord)) -> Result<()> {
        let mut next = self.host.clone();
        change(&mut next);
        write(&self.dir.join("host.json"), &next)?;
        self.host = next;
        self.unwritten = false;
        Ok(())
    }

    /// Notes in the host's record what is so already, whether or not the disk takes it now: it is written with the next
    /// change, or by [`Self::settle`].
    ///
    /// # Errors
    /// When the disk refuses; the note is kept in memory then.
    pub fn note(&mut self, change: impl FnOnce(&mut HostRecord)) -> Result<()> {
        change(&mut self.host);
        self.unwritten = true;
        self.settle()
    }

    /// Whether something that was noted is not on disk.
    #[must_use]
    pub fn is_unwritten(&self) -> bool {
        self.unwritten
    }

    /// Writes what was noted and is not on disk.
    ///
    /// # Errors
    /// When the disk still refuses.
    pub fn settle(&mut self) -> Result<()> {
        if self.unwritten {
            write(&self.dir.join("host.json"), &self.host)?;
            self.unwritten = false;
        }
        Ok(())
    }

    /// Writes one workspace's record.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn put(&self, record: &WorkspaceRecord) -> Result<()> {
        write(&self.path(&record.intent.workspace), record)
    }

    /// Forgets a workspace that was removed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget(&self, workspace: &WorkspaceId) -> Result<()> {
        match fs::remove_file(self.path(workspace)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SystemError::new("change the ledger", error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path(&self, workspace: &WorkspaceId) -> PathBuf {
        self.dir.join(format!("{workspace}.json"))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SystemError::new(format!("read {}", path.display()), error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        SystemError::new(format!("read {}", path.display()), io::Error::new(io::ErrorKind::InvalidData, e))
            .with_hint("the host's ledger is damaged: restore the file from a backup; the host does nothing until then")
    })
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec(value)
        .map_err(|e| SystemError::new("write the ledger", io::Error::new(io::ErrorKind::InvalidData, e)))?;
    files::write_durably(path, &bytes, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_and_damage_is_not_taken_for_nothing() {
        let home = tempfile::tempdir().expect("temp dir");
        fs::create_dir(home.path().join("host")).expect("mkdir");
        let (mut ledger, none) = Ledger::open(home.path()).expect("open");
        assert!(none.is_empty());
        ledger.change(|host| host.next_index = 7).expect("write");
        assert_eq!(Ledger::open(home.path()).expect("open").0.host.next_index, 7);
        fs::write(home.path().join("host/ledger/host.json"), "{").expect("write");
        assert!(Ledger::open(home.path()).is_err());
    }
}
