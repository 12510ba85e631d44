//! How much of the disk each workspace takes: what lies in its trees, what it holds open without a name, its objects.

use crate::{
    daemon::{
        hub::{Hub, Workspace},
        storage,
        values::Values,
    },
    system::{cgroup::Group, sandbox::Sandbox, usage},
};
use envforge_api::ids::WorkspaceId;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, Instant},
};

/// A workspace that takes longer than this to be looked at has more files than can be counted.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a workspace has something on the disk.
pub(super) struct Places {
    pub(super) workspace: WorkspaceId,
    /// Its directory first.
    trees: Vec<PathBuf>,
    /// Where the storage server has objects, and the names of the workspace's buckets.
    storage: PathBuf,
    buckets: Vec<String>,
    /// Whose open files count too.
    groups: Vec<Group>,
    /// The directory whose disk is meant: what lies on others does not count.
    disk: PathBuf,
}

impl Places {
    /// Of a workspace. `snapshots`: they take space of their own, since nothing is shared with what they were made of.
    /// `open`: files without a name count too.
    pub(super) fn of(hub: &Hub, workspace: &Workspace, sandbox: &Sandbox, snapshots: bool, open: bool) -> Self {
        let dir = hub.installation.workspace_dir(&workspace.id);
        let buckets = Values::of(&dir).keyring().all().map(|bucket| bucket.name.clone()).collect();
        let of_snapshots = hub.installation.home.join("snapshots").join(workspace.id.as_str());
        let disk = hub.installation.home.join("workspaces");
        let groups = if open { vec![sandbox.cgroups.shell.clone(), sandbox.cgroups.runtime.clone()] } else { vec![] };
        Self {
            workspace: workspace.id.clone(),
            trees: std::iter::once(dir).chain(snapshots.then_some(of_snapshots)).collect(),
            storage: storage::place(hub).dir(),
            buckets,
            groups,
            disk,
        }
    }

    /// Octets; `None` when they cannot be counted in time.
    pub(super) fn size(&self) -> Option<u64> {
        let until = Instant::now() + PATIENCE;
        let device = fs::metadata(&self.disk).ok()?.dev();
        let here = |path: &PathBuf| fs::metadata(path).is_ok_and(|about| about.dev() == device);
        let mut sum = 0;
        for tree in self.trees.iter().filter(|tree| here(tree)) {
            sum += usage::octets(tree, until)?;
        }
        if here(&self.storage) {
            for bucket in &self.buckets {
                sum += self.objects(bucket, until)?;
            }
        }
        // A subvolume has a number of its own. What has no name elsewhere, as in memory, takes nothing of this disk.
        let theirs = ["", "files", "tmp", "data", "data/postgresql"].map(|tree| self.trees[0].join(tree));
        let devices = theirs.iter().filter_map(|tree| Some(fs::symlink_metadata(tree).ok()?.dev())).collect();
        let pids = self.groups.iter().flat_map(Group::pids);
        Some(sum + usage::nameless(pids, &devices, until)?)
    }

    /// `MinIO` has a directory for each bucket, `SeaweedFS` files that begin with its name (a collection's volumes).
    fn objects(&self, bucket: &str, until: Instant) -> Option<u64> {
        let mut sum = usage::octets(&self.storage.join("minio").join(bucket), until)?;
        let volume = format!("{bucket}_");
        for entry in fs::read_dir(self.storage.join("seaweedfs")).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&volume) {
                sum += entry.metadata().map_or(0, |about| about.blocks() * 512);
            }
        }
        Some(sum)
    }
}
