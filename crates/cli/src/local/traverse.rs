//! Other users must be able to reach the home: PostgreSQL and every workspace run as users of their own.

use envforge_api::problem::Problem;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// The ancestors of `home` (itself included) that other users may not pass through.
pub(super) fn closed_ancestors(home: &Path) -> Vec<PathBuf> {
    let mut closed: Vec<PathBuf> = home
        .ancestors()
        .filter(|dir| fs::metadata(dir).is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0))
        .map(Path::to_owned)
        .collect();
    closed.reverse();
    closed
}

/// The command that opens them.
pub(super) fn mend(closed: &[PathBuf]) -> String {
    let dirs: Vec<_> = closed.iter().map(|dir| dir.display().to_string()).collect();
    format!("chmod o+x {}, or choose another ENVFORGE_HOME", dirs.join(" "))
}

/// Refuses a home that other users cannot reach.
///
/// # Errors
/// Names the first directory that is closed.
pub(super) fn check(home: &Path) -> Result<(), Problem> {
    let closed = closed_ancestors(home);
    match closed.first() {
        None => Ok(()),
        Some(first) => Err(Problem::unavailable(
            format!("{} is closed to other users, so PostgreSQL cannot reach {}", first.display(), home.display()),
            mend(&closed),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::scratch::Scratch, *};

    #[test]
    fn a_closed_ancestor_is_named_with_the_command_that_opens_it() {
        let dir = Scratch::new();
        let closed = dir.path().join("closed");
        let home = closed.join("home");
        fs::create_dir_all(&home).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(check(&home), Ok(()));
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let problem = check(&home).unwrap_err();
        assert!(problem.message.starts_with(&format!("{} is closed", closed.display())));
        assert!(problem.hint.starts_with(&format!("chmod o+x {}", closed.display())));
    }
}
