//! First starts that cannot be: what is wrong is said with where and how to mend it, nothing runs on, and mended it starts.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
};

const NOBODY: u32 = 65534;

fn envforge(home: &Path, user: Option<u32>, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    if let Some(uid) = user {
        command.uid(uid).gid(uid).env("HOME", "/nonexistent").env_remove("XDG_RUNTIME_DIR").current_dir("/");
    }
    command.args(args).env("ENVFORGE_HOME", home).env_remove("ENVFORGE_SERVER").stdin(Stdio::null());
    command.output().expect("envforge runs")
}

/// What is told of a start that must fail.
fn refused(home: &Path, user: Option<u32>) -> String {
    let out = envforge(home, user, &["local", "start"]);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "{told}");
    assert!(told.contains("hint:"), "{told}");
    told
}

/// Whether any process was started for this home.
fn runs(home: &Path) -> bool {
    let home = home.to_string_lossy().into_owned();
    fs::read_dir("/proc").expect("proc").flatten().any(|entry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).split('\0').any(|line| line == format!("ENVFORGE_HOME={home}"))
    })
}

#[test]
fn a_home_that_cannot_be_is_refused_with_what_to_mend_and_nothing_runs_on() {
    let dir = tempfile::Builder::new().prefix("ef").tempdir().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, "mine").expect("written");
    let told = refused(&file, None);
    assert!(told.contains("file") && told.contains("choose another ENVFORGE_HOME"), "{told}");
    assert_eq!(fs::read_to_string(&file).expect("read"), "mine", "nothing is changed");

    if nix::unistd::geteuid().is_root() {
        // A directory of root's, for someone else.
        let foreign = dir.path().join("foreign");
        fs::create_dir(&foreign).expect("made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let told = refused(&foreign.join("home"), Some(NOBODY));
        assert!(told.contains("foreign/home") && told.contains("belong to the user"), "{told}");
        assert!(!foreign.join("home").exists() && !runs(&foreign.join("home")));

        // Databases run as users of their own, who must be let through.
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).expect("made");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("chmod");
        let home = closed.join("home");
        let told = refused(&home, None);
        assert!(told.contains("closed to other users") && told.contains("chmod o+x"), "{told}");
        assert!(!runs(&home));
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o711)).expect("chmod");
        let out = envforge(&home, None, &["local", "start"]);
        assert!(out.status.success(), "mended: {}", String::from_utf8_lossy(&out.stderr));
        let out = envforge(&home, None, &["local", "reset", "--yes"]);
        assert!(out.status.success() && !runs(&home), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn a_home_with_a_very_long_name_works() {
    let dir = tempfile::Builder::new().prefix("ef").tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    // Longer than the path of any unix socket.
    let home = dir.path().join("x".repeat(200));
    let out = envforge(&home, None, &["local", "start"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let out = envforge(&home, None, &["local", "reset", "--yes"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
