//! What is removed leaves nothing on the machine, whatever its user made and whoever was killed meanwhile.

use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    machine::{eventually, lives, sigkill},
};
use serde_json::Value;
use std::{fs, io::Write, os::unix::fs::MetadataExt, path::Path, process::Command};

fn start() -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    (local, fixture)
}

fn leaves_traces() -> bool {
    let root = fs::metadata("/proc/self").expect("proc").uid() == 0;
    if !root {
        let _ = writeln!(std::io::stderr(), "skipped: without root no accounts and namespaces are there to be left");
    }
    root
}

/// Nests directories deeper than any path may be long, and puts a link and a closed directory to the end.
const NEST: &str = "cd /workspace && python3 -c '
import os
for _ in range(20000):
    os.mkdir(\"d\")
    os.chdir(\"d\")
os.symlink(\"/etc\", \"etc\")
os.mkdir(\"closed\", 0)
'";

/// Every line of the machine's tables and every directory that carries one of these names.
fn traces(names: &[&str]) -> Vec<String> {
    let output = |argv: &[&str]| {
        let out = Command::new(argv[0]).args(&argv[1..]).output().expect("started");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let tables = [
        ("passwd", read("/etc/passwd")),
        ("group", read("/etc/group")),
        ("subuid", read("/etc/subuid")),
        ("subgid", read("/etc/subgid")),
        ("mounts", read("/proc/self/mountinfo")),
        ("links", output(&["ip", "-o", "link"])),
        ("nft", output(&["nft", "list", "tables"])),
        ("groups of processes", output(&["find", "/sys/fs/cgroup", "-maxdepth", "3", "-type", "d"])),
        ("run", output(&["find", "/run", "-maxdepth", "3"])),
    ];
    let carries = |line: &&str| names.iter().any(|name| line.contains(name));
    let lines = tables
        .iter()
        .flat_map(|(of, text)| text.lines().filter(carries).map(|line| format!("{of}: {line}")).collect::<Vec<_>>());
    lines.collect()
}

/// The host daemon, while one lives.
fn daemon(local: &Local) -> Option<i32> {
    let record: Value = serde_json::from_slice(&fs::read(local.home().join("keeper.json")).ok()?).ok()?;
    let host = record["parts"].as_array()?.iter().find(|part| part["name"] == "host")?;
    i32::try_from(host["process"]["pid"].as_i64()?).ok().filter(|pid| lives(*pid))
}

fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(dir).map(|all| all.flatten().map(|entry| entry.file_name()).collect()).unwrap_or_default()
}

fn processes_of(uids: &[u32]) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let of = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|about| uids.contains(&about.uid()));
    entries.filter(of).filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

#[test]
fn a_deletion_that_is_cut_short_goes_on_and_leaves_nothing_however_deep_the_tree_is() {
    if !leaves_traces() {
        return;
    }
    let (local, _fixture) = start();
    local.ok(&["up", "deep", "-c", "--no-attach", "--wait"]);
    local.ok(&["up", "deep", "--no-attach", "--", "sleep", "1000"]);
    local.ok(&["exec", "deep", "--", "sh", "-c", NEST]);
    let dir = local.workspace_dir("deep");
    let uids = [dir.join("files"), dir.join("data")].map(|at| fs::metadata(at).expect("there").uid());
    let id = local.installation();
    let own = [format!("ef-{id}-w0:"), format!("ef-{id}-r0:"), format!("e{id}h0"), format!("{id}/w0")];
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    for of in ["passwd", "group", "mounts", "links", "groups of processes", "run"] {
        let there = traces(&own);
        assert!(there.iter().any(|line| line.starts_with(of)), "{of}: {there:#?}");
    }

    let mut deleting = local.command(&["delete", "deep", "--yes", "--force"]).spawn().expect("started");
    // The daemon is killed again and again while it removes; it goes on each time.
    for _ in 0..4 {
        let seen = names(&dir.join("files"));
        eventually("the removal goes on", || (names(&dir.join("files")) != seen || !dir.exists()).then_some(()));
        sigkill(eventually("a daemon", || daemon(&local)));
    }
    assert!(deleting.wait().expect("waited").success());
    assert!(!dir.exists());
    assert_eq!(processes_of(&uids), [0_i32; 0]);
    let left = traces(&own);
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(local.run(&["status", "deep"]).status.code(), Some(3));
    // The name is free again, and what comes is new.
    local.ok(&["up", "deep", "-c", "--no-attach"]);
    assert!(!local.inside("deep", "test -e /workspace/d").status.success());
}

#[test]
fn a_reset_leaves_nothing_of_the_installation_on_the_machine() {
    if !leaves_traces() {
        return;
    }
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    local.ok(&["up", "w", "--no-attach", "--", "sleep", "1000"]);
    local.ok(&["exec", "w", "--", "sh", "-c", NEST]);
    let id = local.installation();
    assert!(!traces(&[&id]).is_empty());
    let supervisor = local.supervisor();
    local.ok(&["local", "reset", "--yes"]);
    assert!(!lives(supervisor));
    assert!(!local.home().exists());
    let left = traces(&[&id]);
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_workspace_that_was_deleted_before_its_host_heard_of_it_is_gone_and_can_be_made_again() {
    let (local, _fixture) = start();
    let signal = |signal| {
        let keeper = nix::unistd::Pid::from_raw(local.part("keeper"));
        nix::sys::signal::kill(keeper, signal).expect("signalled");
    };
    // Nobody brings the host daemon back meanwhile.
    signal(nix::sys::signal::Signal::SIGSTOP);
    sigkill(local.part("host"));
    let mut up = local.command(&["up", "gone", "-c", "--no-attach"]).spawn().expect("up");
    let is_known = || local.json(&["ls"])["workspaces"].as_array().is_some_and(|all| !all.is_empty());
    eventually("it is known", || is_known().then_some(()));
    let _ = up.kill();
    let _ = up.wait();
    let mut delete = local.command(&["delete", "gone", "--yes", "--force"]).spawn().expect("delete");
    let is_going = || local.json(&["workspace", "commands", "gone"]).to_string().contains("DELETE_WORKSPACE");
    eventually("its deletion is asked for", || is_going().then_some(()));
    signal(nix::sys::signal::Signal::SIGCONT);
    eventually("it is gone", || (!is_known()).then_some(()));
    let _ = delete.wait();
    local.ok(&["up", "gone", "-c", "--no-attach"]);
}
