//! Binds a unix socket so that callers never find it missing or half-made, and serves it until told to stop.

use crate::system::accounts::Account;
use axum::Router;
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, time::Duration};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// How long answers under way may take once the daemon stops.
const DRAIN: Duration = Duration::from_secs(2);

/// A socket at `path` with this mode and owner.
///
/// It is made in `workshop`, which only this daemon can write to, and moved to its place when it is whole: whoever owns
/// the directory of `path` cannot have something else changed in the meantime.
///
/// # Errors
/// When the machine refuses.
pub(in crate::daemon) fn bind(
    workshop: &Path,
    path: &Path,
    mode: u32,
    owner: Option<&Account>,
) -> io::Result<UnixListener> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let made = workshop.join(format!(".{name}"));
    match fs::remove_file(&made) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(mode))?;
    if let Some(owner) = owner.filter(|_| rustix::process::geteuid().is_root()) {
        std::os::unix::fs::lchown(&made, Some(owner.uid), Some(owner.gid))?;
    }
    fs::rename(&made, path)?;
    Ok(listener)
}

/// Serves until `stop`; then answers what was asked already, for at most two seconds.
///
/// # Errors
/// Never in practice: what fails on one connection ends that connection.
pub(super) async fn run(listener: UnixListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    let told = stop.clone();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move { told.cancelled().await });
    tokio::select! {
        ended = serving => ended,
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}
