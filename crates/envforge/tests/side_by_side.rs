//! Two installations on one machine never meet, and a copy of one is not taken for it.

use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    machine::{eventually, lives},
};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Output},
};

fn start() -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    (local, fixture)
}

/// Runs the command line on another home.
fn on(local: &Local, home: &Path, args: &[&str]) -> Output {
    local.command(args).env("ENVFORGE_HOME", home).output().expect("started")
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn two_installations_with_one_workspace_each_share_a_port_and_a_name_and_nothing_else() {
    let (one, _one) = start();
    let (two, _two) = start();
    for (local, text) in [(&one, "first"), (&two, "second")] {
        local.ok(&["up", "same", "-c", "--no-attach", "--wait"]);
        local.curl("same", &format!("http://localhost:3000/set?v={text}"));
    }
    for (local, text) in [(&one, "first"), (&two, "second")] {
        assert_eq!(local.curl_json("same", "http://localhost:3000/")["key"], text);
    }
    let uid = |local: &Local| fs::metadata(local.workspace_dir("same").join("files")).expect("there").uid();
    let root = fs::metadata("/proc/self").expect("proc").uid() == 0;
    let address = |local: &Local| local.inside_ok("same", "hostname -I");
    if root {
        assert_ne!(uid(&one), uid(&two));
        assert_ne!(address(&one), address(&two));
    }
    let (services, port) = (two.pids_in("w0/runtime/services/web"), two.json(&["local", "status"])["address"].clone());
    assert!(!services.is_empty());

    // The end of one is nothing to the other.
    one.ok(&["local", "stop", "--all"]);
    one.ok(&["local", "reset", "--yes"]);
    assert!(!one.home().exists());
    assert_eq!(two.pids_in("w0/runtime/services/web"), services);
    assert_eq!(two.json(&["local", "status"])["address"], port);
    assert_eq!(two.curl_json("same", "http://localhost:3000/")["key"], "second");
    two.ok(&["sleep", "same", "--wait"]);
    two.ok(&["wake", "same", "--wait"]);
    assert_eq!(two.curl_json("same", "http://localhost:3000/")["key"], "second");
}

#[test]
fn a_copied_home_is_refused_by_every_command_and_costs_the_original_nothing() {
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    let (service, keeper) = (local.pids_in("w0/runtime/services/web"), local.part("keeper"));
    let files = local.workspace_dir("w").strip_prefix(local.home()).expect("in the home").join("files");
    let copy = local.dir().join("copy");
    let copied = Command::new("cp").arg("-a").arg(local.home()).arg(&copy).output().expect("cp");
    assert!(copied.status.success(), "{}", said(&copied));

    for args in [
        &["ls"][..],
        &["sleep", "w"],
        &["delete", "w", "--yes", "--force"],
        &["local", "start"],
        &["local", "status"],
        &["local", "stop"],
        &["local", "stop", "--all"],
        &["local", "reset", "--yes"],
        &["local", "adopt"],
        &["host", "wipe", "--home", &copy.to_string_lossy()],
    ] {
        let out = on(&local, &copy, args);
        assert!(!out.status.success(), "{args:?}");
        let home = local.home();
        assert!(said(&out).contains(&*home.to_string_lossy()), "{args:?}: {}", said(&out));
    }
    assert!(!service.is_empty() || fs::metadata("/proc/self").expect("proc").uid() != 0);
    assert!(lives(keeper) && local.part("keeper") == keeper);
    assert_eq!(local.pids_in("w0/runtime/services/web"), service);
    assert_eq!(local.status("w")["runtime"]["state"], "awake");

    // The original is gone for good, as after the loss of a disk: the copy may take over.
    local.ok(&["local", "stop", "--all"]);
    fs::rename(local.home().join("host"), local.dir().join("lost")).expect("moved away");
    let taken = on(&local, &copy, &["local", "adopt"]);
    assert!(taken.status.success(), "{}", said(&taken));
    let back = on(&local, &copy, &["up", "w", "--no-attach"]);
    assert!(back.status.success(), "{}", said(&back));
    eventually("the page of the copy", || {
        let page = on(&local, &copy, &["exec", "w", "--", "curl", "-sS", "-m", "10", "http://localhost:3000/"]);
        page.status.success().then_some(())
    });
    let touched = on(&local, &copy, &["exec", "w", "--", "touch", "/workspace/of-the-copy"]);
    assert!(touched.status.success(), "{}", said(&touched));
    assert!(copy.join(&files).join("of-the-copy").exists(), "it works in the copy");
    let reset = on(&local, &copy, &["local", "reset", "--yes"]);
    assert!(reset.status.success(), "{}", said(&reset));
    fs::rename(local.dir().join("lost"), local.home().join("host")).expect("moved back");
}
