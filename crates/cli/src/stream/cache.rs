//! The last grant of each workspace, so that a shell can be attached again while the control plane is away.
//!
//! A file of one's own (0600) for each EnvForge and workspace; it is of use for the hour its capability lasts.

use crate::settings::Settings;
use envforge_api::{names::Slug, public::Opened, time::Timestamp};
use std::{
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
};

fn path(settings: &Settings, workspace: &str) -> Option<PathBuf> {
    let key = envforge_api::names::short_hash(&settings.key());
    settings.cache.as_ref().map(|directory| directory.join(format!("grant-{key}-{workspace}.json")))
}

/// Keeps a grant. A cache that cannot be written is no failure.
pub(crate) fn keep(settings: &Settings, opened: &Opened) {
    let Some(path) = path(settings, opened.workspace.as_str()) else { return };
    let write = || -> std::io::Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let kept = file.write_all(&serde_json::to_vec(opened)?).and_then(|()| std::fs::rename(&new, &path));
        if kept.is_err() {
            // The half of one is of no use, and may hold a capability.
            let _ = std::fs::remove_file(&new);
        }
        kept
    };
    if let Err(error) = write() {
        tracing::debug!(%error, "the grant was not cached");
    }
}

/// A kept grant that is still valid.
pub(crate) fn find(settings: &Settings, workspace: &Slug, now: Timestamp) -> Option<Opened> {
    let text = std::fs::read(path(settings, workspace.as_str())?).ok()?;
    let opened: Opened = serde_json::from_slice(&text).ok()?;
    (opened.grant.expires_at > now).then_some(opened)
}

/// Forgets a grant.
pub(crate) fn forget(settings: &Settings, workspace: &Slug) {
    if let Some(path) = path(settings, workspace.as_str()) {
        // Not there is as good as removed.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Target;
    use envforge_api::{
        ids::{HostId, WorkspaceId},
        public::Grant,
        secret::Secret,
    };
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_kept_grant_is_private_and_of_use_until_it_expires() {
        let directory = tempfile::tempdir().expect("directory");
        let settings = Settings {
            target: Target::Local,
            home: "/h".into(),
            project: None,
            cache: Some(directory.path().join("c")),
        };
        let workspace: Slug = "a".parse().expect("slug");
        let opened = Opened {
            id: WorkspaceId::generate(),
            workspace: workspace.clone(),
            created: false,
            wake: None,
            grant: Grant {
                host: HostId::generate(),
                workspace: WorkspaceId::generate(),
                local_socket: None,
                gateway: None,
                token: Secret::new("t".into()),
                expires_at: "2026-01-01T01:00:00Z".parse().expect("time"),
            },
        };
        keep(&settings, &opened);
        keep(&settings, &opened);
        let at = |text: &str| text.parse::<Timestamp>().expect("time");
        assert_eq!(find(&settings, &workspace, at("2026-01-01T00:59:59Z")), Some(opened));
        assert_eq!(find(&settings, &workspace, at("2026-01-01T01:00:00Z")), None);
        let file = path(&settings, "a").expect("path");
        assert_eq!(std::fs::metadata(file).expect("there").permissions().mode() & 0o777, 0o600);
        let elsewhere = Settings { home: "/other".into(), ..settings.clone() };
        assert_eq!(find(&elsewhere, &workspace, at("2026-01-01T00:00:00Z")), None);
        forget(&settings, &workspace);
        assert_eq!(find(&settings, &workspace, at("2026-01-01T00:00:00Z")), None);
    }
}
