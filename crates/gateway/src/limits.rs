//! How many requests may wait for a wake: a bound for each workspace, and one for each organization.

use envforge_api::ids::{OrganizationId, WorkspaceId};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// For one workspace.
const OF_WORKSPACE: usize = 256;
/// For one organization.
const OF_ORGANIZATION: usize = 1024;

#[derive(Debug, Default)]
struct Counts {
    workspaces: HashMap<WorkspaceId, usize>,
    organizations: HashMap<OrganizationId, usize>,
}

/// Who waits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiting(Arc<Mutex<Counts>>);

/// A place among those who wait; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Waiting,
    workspace: WorkspaceId,
    organization: OrganizationId,
}

impl Waiting {
    /// A place, unless too many wait already.
    pub(crate) fn enter(&self, workspace: &WorkspaceId, organization: &OrganizationId) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_workspace = counts.workspaces.get(workspace).copied().unwrap_or(0);
        let of_organization = counts.organizations.get(organization).copied().unwrap_or(0);
        if of_workspace >= OF_WORKSPACE || of_organization >= OF_ORGANIZATION {
            return None;
        }
        counts.workspaces.insert(workspace.clone(), of_workspace + 1);
        counts.organizations.insert(organization.clone(), of_organization + 1);
        Some(Place { of: self.clone(), workspace: workspace.clone(), organization: organization.clone() })
    }
}

fn leave<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        leave(&mut counts.workspaces, &self.workspace);
        leave(&mut counts.organizations, &self.organization);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_for_one_workspace_leaves_room_for_another_and_places_are_given_back() {
        let waiting = Waiting::default();
        let (one, other, organization) = (WorkspaceId::generate(), WorkspaceId::generate(), OrganizationId::generate());
        let places: Vec<_> = (0..OF_WORKSPACE).map(|_| waiting.enter(&one, &organization).expect("a place")).collect();
        assert!(waiting.enter(&one, &organization).is_none());
        assert!(waiting.enter(&other, &organization).is_some());
        drop(places);
        assert!(waiting.enter(&one, &organization).is_some());
        let counts = waiting.0.lock().expect("sound");
        assert!(counts.workspaces.is_empty() && counts.organizations.is_empty());
    }
}
