//! What is copied how: a pure function of the file system and of what runs.

use crate::system::copying::Way;
use std::{collections::BTreeSet, path::Path};

/// What is, when a copy begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// How content gets into the copy.
    pub(super) way: Way,
    /// PostgreSQL runs.
    pub(super) database: bool,
    /// Redis runs.
    pub(super) redis: bool,
}

/// How a part is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// In passes while it is written to, the last one while its writers stand still: files as they are at that moment.
    Passes,
    /// The same, after its server has written down what it holds.
    Written,
    /// Once, between the two words of PostgreSQL; what is written meanwhile is in its log.
    Backup,
}

/// A part of a workspace: a directory of its own in the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Below the workspace's directory.
    pub(super) at: &'static str,
    /// How.
    pub(super) how: How,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// All parts.
    pub(super) parts: Vec<Part>,
    /// Resource servers that do not stand still, since their parts need them.
    pub(super) go_on: BTreeSet<String>,
}

/// Directory of the cluster, of Redis, and of everything else that resource servers have.
pub(super) const DATABASE: &str = "data/postgresql";
pub(super) const REDIS: &str = "data/redis";
pub(super) const DATA: &str = "data";
pub(super) const FILES: &str = "files";

/// Decides.
///
/// Where extents are shared, a cluster is cloned while its server stands still with all others: it comes up as after a
/// loss of power at that moment, which costs nothing to copy. Where they are not, most of it is copied before.
/// Objects of storage lie with the host's server and in no directory of a workspace: see [`objects`](super::objects).
pub(super) fn plan(found: Found) -> Plan {
    let database = match (found.database, found.way) {
        (true, Way::Copy) => How::Backup,
        (true, Way::Clone) | (false, _) => How::Passes,
    };
    let redis = if found.redis { How::Written } else { How::Passes };
    let go_on = [("database", database == How::Backup), ("redis", found.redis)];
    Plan {
        // Data first: a large cluster takes longest, and what comes last has least to catch up with.
        parts: vec![
            Part { at: DATA, how: How::Passes },
            Part { at: DATABASE, how: database },
            Part { at: REDIS, how: redis },
            Part { at: FILES, how: How::Passes },
        ],
        go_on: go_on.iter().filter(|(_, goes)| *goes).map(|(name, _)| (*name).to_owned()).collect(),
    }
}

/// What the part of all other data has not: those that are parts, and sockets' directories.
pub(super) fn is_another_part(path: &Path) -> bool {
    path.parent() == Some(Path::new(""))
        && path.to_str().is_some_and(|name| ["postgresql", "redis", "postgresql-socket"].contains(&name))
}

/// Files of Redis that are about its present process.
pub(super) fn is_of_redis_process(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("temp-"))
}

/// Its log of commands; the part of it that is a dump is replaced as a whole.
pub(super) fn is_redis_log(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".incr.aof")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(found: Found) -> (Vec<(&'static str, How)>, Vec<String>) {
        let plan = plan(found);
        (plan.parts.iter().map(|part| (part.at, part.how)).collect(), plan.go_on.into_iter().collect())
    }

    #[test]
    fn asleep_everything_is_files() {
        for way in [Way::Clone, Way::Copy] {
            let (parts, go_on) = how(Found { way, database: false, redis: false });
            assert!(parts.iter().all(|(_, how)| *how == How::Passes) && go_on.is_empty(), "{parts:?}");
            assert_eq!(parts.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [DATA, DATABASE, REDIS, FILES]);
        }
    }

    #[test]
    fn a_cluster_that_serves_is_copied_ahead_unless_its_extents_can_be_shared() {
        let (parts, go_on) = how(Found { way: Way::Copy, database: true, redis: true });
        assert_eq!((parts[1], parts[2]), ((DATABASE, How::Backup), (REDIS, How::Written)));
        assert_eq!(go_on, ["database", "redis"]);
        let (parts, go_on) = how(Found { way: Way::Clone, database: true, redis: true });
        assert_eq!((parts[1], parts[2]), ((DATABASE, How::Passes), (REDIS, How::Written)));
        assert_eq!(go_on, ["redis"]);
    }

    #[test]
    fn each_thing_is_in_one_part() {
        assert!(["postgresql", "redis"].iter().all(|name| is_another_part(Path::new(name))));
        assert!(!is_another_part(Path::new("mailpit")) && !is_another_part(Path::new("mailpit/redis")));
        assert!(is_redis_log(Path::new("appendonlydir/appendonly.aof.3.incr.aof")));
        assert!(!is_redis_log(Path::new("appendonlydir/appendonly.aof.3.base.rdb")));
        assert!(is_of_redis_process(Path::new("temp-12.rdb")) && !is_of_redis_process(Path::new("dump.rdb")));
    }
}
