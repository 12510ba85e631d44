//! A person attaches: the prompt comes at once, whatever the runtime does, and an earlier grant is never in the way.

use envforge_testkit::{fixture::Fixture, local::Local};
use std::path::Path;

fn start() -> Local {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    local
}

/// Attaches, has the shell compute something, detaches.
fn attach(local: &Local, args: &[&str]) {
    let mut terminal = local.terminal(args);
    terminal.wait_for("$ ");
    terminal.type_in("echo it-is-$((40 + 2)); cat mine\n");
    terminal.wait_for("it-is-42");
    assert_eq!(terminal.detach(), Some(0));
}

#[test]
fn a_new_workspace_opens_its_shell_and_attaching_again_finds_the_same_one() {
    let local = start();
    let mut first = local.terminal(&["up", "w", "-c"]);
    first.wait_for("$ ");
    first.type_in("mark=here; echo pane-$((1 + 1))\n");
    first.wait_for("pane-2");
    assert_eq!(first.detach(), Some(0));
    // The runtime is on its way or there; the terminal never waited for it. Asleep, it is the same.
    local.ok(&["sleep", "w", "--wait"]);
    let mut again = local.terminal(&["up", "w"]);
    again.wait_for("$ ");
    again.type_in("echo mark-is-$mark\n");
    again.wait_for("mark-is-here");
    assert_eq!(again.detach(), Some(0));
    // Attaching with a kept grant asked for the wake too.
    local.wait_healthy("w");
}

#[test]
fn a_grant_kept_from_a_deleted_workspace_does_not_keep_a_new_one_from_opening() {
    let local = start();
    attach(&local, &["up", "w", "-c"]);
    // Deleted by someone else: this person's grant is still kept.
    let cache = local.dir().join("cache");
    let kept = local.dir().join("kept");
    std::fs::rename(&cache, &kept).expect("a grant was kept");
    local.ok(&["delete", "w", "--yes", "--force"]);
    let _ = std::fs::remove_dir_all(&cache);
    std::fs::rename(&kept, &cache).expect("rename");
    attach(&local, &["up", "w", "-c"]);
}
