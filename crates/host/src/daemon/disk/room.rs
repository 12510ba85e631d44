//! What the rest of the daemon knows of the disk: who stands still, and what nothing large may take.

use super::judge::Hold;
use envforge_api::{ids::WorkspaceId, states::Trouble};
use std::collections::BTreeMap;
use tokio::sync::watch;

/// See the module.
#[derive(Debug)]
pub(in crate::daemon) struct Room {
    held: watch::Sender<BTreeMap<WorkspaceId, Hold>>,
    margin: watch::Sender<u64>,
}

impl Default for Room {
    fn default() -> Self {
        Self { held: watch::Sender::new(BTreeMap::new()), margin: watch::Sender::new(0) }
    }
}

impl Room {
    /// Why a workspace stands still, if it does.
    pub(in crate::daemon) fn holds(&self, workspace: &WorkspaceId) -> Option<Trouble> {
        let hint = match self.held.borrow().get(workspace)? {
            Hold::Writers => {
                "remove files of it, or snapshots (`envforge snapshot rm`); when there is space, what was stopped in its shell \
                 goes on and it can be woken again"
            }
            Hold::All => {
                "its shell stands still too: whoever runs the host makes room (`envforge snapshot rm` and `envforge delete` \
                 do as well); then it goes on"
            }
        };
        Some(Trouble::new("the host's disk is nearly full, and this workspace took the space", hint))
    }

    /// The same where its shell stands still too: nothing that is started in it would run.
    pub(in crate::daemon) fn holds_shell(&self, workspace: &WorkspaceId) -> Option<Trouble> {
        let whole = self.held.borrow().get(workspace) == Some(&Hold::All);
        whole.then(|| self.holds(workspace)).flatten()
    }

    /// Octets that nothing large may take.
    pub(in crate::daemon) fn margin(&self) -> u64 {
        *self.margin.borrow()
    }

    pub(super) fn keep(&self, margin: u64) {
        self.margin.send_replace(margin);
    }

    pub(super) fn hold(&self, held: BTreeMap<WorkspaceId, Hold>) {
        self.held.send_replace(held);
    }
}
