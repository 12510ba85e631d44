//! What keeps workspaces apart from each other, from the host and from other installations. As root: without root
//! there is less isolation, and `envforge doctor` says so.

mod databases;
mod exhaustion;
mod hostile;
mod links;
mod mail;
mod neighbours;
mod objects;
mod redis;
mod sockets;
mod world;

use envforge_testkit::{fixture::Fixture, local::Local};
use std::path::Path;

fn start() -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    (local, fixture)
}

/// Two workspaces that serve at the same time.
fn two_awake() -> (Local, Fixture) {
    let (local, fixture) = start();
    for branch in ["one", "two"] {
        local.ok(&["up", branch, "-c", "--no-attach"]);
    }
    for branch in ["one", "two"] {
        local.wait_healthy(branch);
    }
    (local, fixture)
}

/// Runs probes inside a workspace. Each prints a line for what it reached; nothing may be.
fn reaches_nothing(local: &Local, workspace: &str, probes: &str) {
    let script = format!(
        "leak() {{ echo \"LEAK: $*\"; }}\n\
         tcp() {{ timeout 2 bash -c \"exec 3<>/dev/tcp/$1/$2\" 2>/dev/null && leak \"tcp $1 $2\"; }}\n\
         {probes}\necho end of probes"
    );
    let found = local.inside_ok(workspace, &script);
    assert_eq!(found, "end of probes", "from {workspace}");
}

/// The probe can fail: what is forbidden elsewhere works here.
fn works(local: &Local, workspace: &str, script: &str) {
    let out = local.inside(workspace, script);
    assert!(out.status.success(), "{script} in {workspace}: {}", String::from_utf8_lossy(&out.stderr));
}
