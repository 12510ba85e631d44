//! Which host a new workspace gets. Pure.

use envforge_api::ids::HostId;

/// A host as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) host: HostId,
    /// It synced lately.
    pub(crate) connected: bool,
    /// Workspaces it carries.
    pub(crate) workspaces: u64,
    /// Its memory in bytes; 0 while it never registered.
    pub(crate) memory_bytes: u64,
}

/// A connected host before any other, then the one with the most memory for each workspace, then the oldest.
pub(crate) fn choose(candidates: &[Candidate]) -> Option<&HostId> {
    candidates
        .iter()
        .min_by_key(|c| (!c.connected, std::cmp::Reverse(c.memory_bytes / (c.workspaces + 1)), c.host.clone()))
        .map(|c| &c.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(connected: bool, workspaces: u64, memory_bytes: u64) -> Candidate {
        Candidate { host: HostId::generate(), connected, workspaces, memory_bytes }
    }

    #[test]
    fn a_connected_host_comes_before_an_emptier_one_that_is_away() {
        let all = [candidate(false, 0, 64), candidate(true, 9, 64)];
        assert_eq!(choose(&all), Some(&all[1].host));
    }

    #[test]
    fn the_host_with_most_memory_for_each_workspace_is_chosen() {
        let all = [candidate(true, 7, 64), candidate(true, 0, 16), candidate(true, 3, 64)];
        assert_eq!(choose(&all), Some(&all[1].host));
        assert_eq!(choose(&[]), None);
    }
}
