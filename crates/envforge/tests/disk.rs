//! One workspace does not use up the disk that the others need: it stands still in time, or has a share of its own.

use envforge_testkit::{
    fixture::Fixture,
    local::{Local, program},
    machine::{cgroup_of, eventually},
    storage::{self, Stored},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
};

const BINARY: &str = env!("CARGO_BIN_EXE_envforge");

/// `a`, which takes what it gets, and `b`, both awake.
fn start(kind: &str, mib: u64, with: &[(&str, &str)], ready: impl FnOnce(&Local)) -> Option<Local> {
    let local = Local::start_on_image(Path::new(BINARY), kind, mib, with)?;
    ready(&local);
    Fixture::create(local.dir()).apply(&local);
    for workspace in ["a", "b"] {
        local.ok(&["up", workspace, "-c", "--no-attach", "--wait"]);
        local.curl(workspace, "http://localhost:3000/add?text=x");
    }
    Some(local)
}

/// A command in the shell of `a`, ended with this.
struct InShell(Child);

impl InShell {
    fn start(local: &Local, script: &str) -> Self {
        let mut command = local.command(&["exec", "a", "--", "sh", "-c", script]);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs"))
    }
}

impl Drop for InShell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free(local: &Local) -> u64 {
    let about = nix::sys::statvfs::statvfs(local.disk().at()).expect("statvfs");
    about.blocks_available() * about.fragment_size()
}

fn rows(local: &Local, workspace: &str) -> Value {
    local.curl_json(workspace, "http://localhost:3000/add?text=x")["rows"].clone()
}

/// State letter of each process of that name in the shell of the first workspace.
fn states(local: &Local, name: &str) -> Vec<(i32, char)> {
    let of = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (before, after) = stat.rsplit_once(") ")?;
        before.ends_with(&format!("({name}")).then_some((pid, after.chars().next()?))
    };
    local.pids_in("w0/shell").into_iter().filter_map(of).collect()
}

fn wait_asleep_for_the_disk(local: &Local) -> Value {
    local.wait_for("a", "asleep for the disk", |status| {
        status["runtime"]["state"] == "asleep" && status["runtime"]["reason"] == "disk"
    })
}

/// Half of it is a file. Whoever took the space stands still below the other half, and as a whole below an eighth.
const RESERVE: [(&str, &str); 1] = [("ENVFORGE_DISK_RESERVE", "600MiB")];
const BALLAST: u64 = 300 << 20;
const EMERGENCY: u64 = 75 << 20;
/// Room for two workspaces, and twice the reserve.
const MIB: u64 = 2200;

/// Writes a megabyte every now and then, so that no machine is too fast for what is looked at; then its parent goes on.
const WRITER: &str = "python3 -c 'import time
f = open(\"/workspace/large\", \"wb\", 0)
while True: f.write(bytes(1 << 20)); time.sleep(0.02)' & wait; touch /workspace/reaped; exec sleep 600";

/// Takes all but so many MiB, in the shell of `a`.
fn leave(local: &Local, mib: u64) {
    local.inside_ok("a", &format!("fallocate -l {} /workspace/before", free(local) - (mib << 20)));
}

/// Whether all of a group of the first workspace stands still.
fn is_still(local: &Local, group: &str) -> bool {
    let at = cgroup_of(&local.installation()).join("w0").join(group).join("cgroup.events");
    fs::read_to_string(at).is_ok_and(|text| text.contains("frozen 1"))
}

fn wait_for_the_ballast(local: &Local, there: bool) {
    let ballast = local.home().join("workspaces/.reserve");
    eventually("the ballast", || {
        (fs::metadata(&ballast).map_or(0, |about| about.len()) == if there { BALLAST } else { 0 }).then_some(())
    });
}

#[test]
fn who_fills_the_disk_stands_still_everyone_else_goes_on_and_it_goes_on_when_there_is_space() {
    let Some(local) = start("ext4", MIB, &RESERVE, |_| {}) else { return };
    wait_for_the_ballast(&local, true);
    let pid = local.curl_json("b", "http://localhost:3000/")["pid"].clone();
    leave(&local, 450);
    let writer = InShell::start(&local, WRITER);
    let mut added = 1;
    let stopped = eventually("the writer is stopped", || {
        added += 1;
        assert_eq!(rows(&local, "b"), added, "its rows are kept meanwhile");
        states(&local, "python3").into_iter().find(|(_, state)| *state == 'T')
    });
    let shown = wait_asleep_for_the_disk(&local);
    assert_eq!(shown["shell"]["state"], "ready", "{shown:#}");
    for layer in ["shell", "runtime"] {
        let hint = shown[layer]["hint"].as_str().unwrap_or_default();
        assert!(hint.contains("remove files"), "{shown:#}");
    }
    assert!(shown["shell"]["reason"].as_str().unwrap_or_default().contains("disk is nearly full"), "{shown:#}");
    assert!(free(&local) > EMERGENCY, "the others have room: {}", free(&local));
    wait_for_the_ballast(&local, true);
    let usage = local.json(&["workspace", "usage", "a"]);
    assert_eq!(usage["sessions"][0]["reason"], "disk", "{usage:#}");
    assert!(local.ok(&["logs", "a", "system"]).contains("disk is nearly full"));

    // Neither its user nor the end of the daemon changes that.
    local.inside_ok("a", &format!("kill -CONT {}", stopped.0));
    eventually("it is stopped again", || (states(&local, "python3") == [stopped]).then_some(()));
    local.kill("host");
    local.ok(&["exec", "a", "--", "true"]);
    assert_eq!((states(&local, "python3"), rows(&local, "b")), (vec![stopped], (added + 1).into()));
    added += 1;

    // It is not woken, not copied, and nothing large is made of others either.
    let woken = local.run(&["wake", "a", "--wait"]);
    let said = String::from_utf8_lossy(&woken.stderr).into_owned();
    assert!(woken.status.code() == Some(1) && said.contains("took the space"), "{said}");
    assert!(local.ok(&["why", "a"]).contains("remove files"));
    for workspace in ["a", "b"] {
        let refused = local.run(&["snapshot", "create", workspace]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && (said.contains("disk") || said.contains("space")), "{said}");
    }
    // The other one sleeps and wakes as ever, in the same space.
    local.ok(&["sleep", "b", "--wait"]);
    local.ok(&["wake", "b", "--wait"]);
    assert_eq!(rows(&local, "b"), added + 1);
    assert_ne!(local.curl_json("b", "http://localhost:3000/")["pid"], pid);

    // Its user makes room, in its shell: who waits for what was killed has written nothing.
    local.inside_ok("a", &format!("kill -KILL {}", stopped.0));
    eventually("its parent goes on", || local.inside("a", "test -e /workspace/reaped").status.success().then_some(()));
    assert!(states(&local, "sleep").iter().all(|(_, state)| *state != 'T'));
    // Less than the reserve is free now, as before: what it took, it gave back.
    local.inside_ok("a", "rm /workspace/large");
    local.wait_for("a", "free to go on", |status| status["shell"]["reason"].is_null());
    assert!(free(&local) < 600 << 20, "{}", free(&local));
    local.ok(&["wake", "a", "--wait"]);
    assert_eq!(rows(&local, "a"), 2);
    drop(writer);
    local.inside_ok("a", "rm /workspace/before");
    local.ok(&["snapshot", "create", "b"]);
}

/// `a` takes the whole disk by this, in one go: it stands still, and the others get the ballast.
fn all_at_once(take: impl FnOnce(&Local) -> Option<InShell>) -> Option<(Local, Option<InShell>)> {
    let local = start("ext4", MIB, &RESERVE, |_| {})?;
    wait_for_the_ballast(&local, true);
    let taker = take(&local);
    wait_for_the_ballast(&local, false);
    assert!(is_still(&local, "shell"));
    let room = free(&local);
    assert!(room > EMERGENCY, "{room}");
    for added in 2..20 {
        assert_eq!(rows(&local, "b"), added);
    }
    let shown = wait_asleep_for_the_disk(&local);
    assert!(shown["shell"]["hint"].as_str().unwrap_or_default().contains("stands still too"), "{shown:#}");
    assert!(free(&local) > EMERGENCY, "nothing of it was taken again: {}", free(&local));
    Some((local, taker))
}

#[test]
fn all_of_the_disk_taken_by_one_call_is_given_back_to_the_others_while_its_taker_stands_still() {
    let taken = all_at_once(|local| {
        let script = format!("fallocate -l {} /workspace/large", free(local) - (20 << 20));
        Some(InShell::start(local, &script))
    });
    let Some((local, _taker)) = taken else { return };
    // Nobody waits for a shell in which nothing runs.
    let refused = local.run(&["exec", "a", "--", "true"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("whoever runs the host makes room"), "{said}");
    let refused = local.run(&["fork", "a", "c"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("took the space"));
    // A daemon that is killed lets nothing of it go on.
    local.kill("host");
    local.wait_for("a", "known again", |status| status["shell"]["reason"].is_string());
    assert!(is_still(&local, "shell"));
    // Whoever runs the host makes room.
    fs::remove_file(local.workspace_dir("a").join("files/large")).expect("remove");
    eventually("it goes on", || (!is_still(&local, "shell")).then_some(()));
    wait_for_the_ballast(&local, true);
    local.ok(&["wake", "a", "--wait"]);
    assert_eq!((rows(&local, "a"), rows(&local, "b")), (2.into(), 20.into()));
}

#[test]
fn services_that_never_stop_taking_get_nothing_of_what_is_given_back_and_their_workspace_can_be_deleted() {
    let taken = all_at_once(|local| {
        let script = "trap '' TERM; n=0; while :; do fallocate -l 20M /workspace/large-$n; n=$((n+1)); done";
        let mut command = local.command(&["run", "a", "--service", "web", "--", "sh", "-c", script]);
        Some(InShell(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs")))
    });
    let Some((local, _taker)) = taken else { return };
    let dir = local.workspace_dir("a");
    local.ok(&["delete", "a", "--yes", "--force"]);
    eventually("it is gone", || (!dir.exists()).then_some(()));
    wait_for_the_ballast(&local, true);
    assert_eq!(rows(&local, "b"), 20);
}

#[test]
fn a_database_that_takes_all_of_it_ends_and_has_what_was_committed_before() {
    let Some(local) = start("ext4", MIB, &RESERVE, |_| {}) else { return };
    wait_for_the_ballast(&local, true);
    local.ok(&["psql", "a", "--", "-qc", "create table big(t text); alter table big alter t set storage external"]);
    leave(&local, 500);
    let insert = "insert into big select repeat('x', 1000000) from generate_series(1, 100000)";
    let mut command = local.command(&["psql", "a", "--", "-c", insert]);
    let taker = InShell(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs"));
    wait_asleep_for_the_disk(&local);
    assert!(free(&local) > EMERGENCY, "{}", free(&local));
    (2..10).for_each(|added| assert_eq!(rows(&local, "b"), added));
    drop(taker);
    fs::remove_file(local.workspace_dir("a").join("files/before")).expect("remove");
    local.wait_for("a", "free to go on", |status| status["shell"]["reason"].is_null());
    local.ok(&["wake", "a", "--wait"]);
    assert_eq!((rows(&local, "a"), rows(&local, "b")), (2.into(), 10.into()));
}

/// What btrfs counts of the first workspace's group, in octets.
fn counted(local: &Local) -> u64 {
    let ok = Command::new("sync").arg("-f").arg(local.disk().at()).status().is_ok_and(|status| status.success());
    assert!(ok, "it is synced");
    let out = Command::new("btrfs").args(["qgroup", "show", "--raw"]).arg(local.disk().at()).output().expect("btrfs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let of_group = |line: &str| {
        let mut words = line.split_whitespace();
        let level_one = words.next()?.starts_with("1/");
        level_one.then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().find_map(of_group).unwrap_or_else(|| panic!("no group in {text}"))
}

#[test]
fn on_btrfs_with_quotas_a_workspace_has_a_share_with_its_data_and_snapshots_and_nothing_else_is_touched_by_its_end() {
    if program("btrfs", "shares of the disk").is_none() {
        return;
    }
    let with = [("ENVFORGE_DISK_LIMIT", "400MiB")];
    let enable = |local: &Local| {
        let enabled = Command::new("btrfs").args(["quota", "enable"]).arg(local.disk().at()).status();
        assert!(enabled.expect("btrfs runs").success());
    };
    let Some(local) = start("btrfs", 3000, &with, enable) else { return };
    let before = counted(&local);
    assert!(before > 20 << 20, "its database counts: {before}");
    local.inside_ok("a", "head -c 100M /dev/urandom > /workspace/large");
    let with_file = counted(&local);
    assert!(with_file >= before + (95 << 20), "{before} {with_file}");
    let made = local.json(&["snapshot", "create", "a"]);
    let with_snapshot = counted(&local);
    assert!(with_snapshot < with_file + (60 << 20), "what is shared counts once: {with_file} {with_snapshot}");

    let out = local.inside("a", "head -c 900M /dev/zero > /workspace/more");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("quota exceeded"), "{said}");
    assert!(free(&local) > 500 << 20, "{}", free(&local));
    for added in 2..5 {
        assert_eq!(rows(&local, "b"), added);
    }
    // Its own database finds nothing left, and says so; nobody else's does.
    let full = local.run(&[
        "psql",
        "a",
        "--",
        "-c",
        "insert into notes(text) select repeat('x', 1000) from generate_series(1, 100000)",
    ]);
    assert!(!full.status.success());
    local.wait_for("a", "its database is blocked", |status| {
        let resources = status["resources"].as_array().cloned().unwrap_or_default();
        let database = resources.iter().find(|resource| resource["kind"] == "database").cloned().unwrap_or_default();
        database["state"] == "blocked" && database["hint"].as_str().unwrap_or_default().contains("its share")
    });
    assert_eq!(rows(&local, "b"), 5);
    local.inside_ok("a", "rm /workspace/more");
    // Room is counted again once it is on the disk.
    counted(&local);
    let snapshot = made["snapshot"].as_str().expect("an id");
    local.ok(&["snapshot", "restore", "a", snapshot, "--yes"]);
    local.wait_healthy("a");
    assert_eq!(rows(&local, "a"), 2);
    local.ok(&["fork", "a", "c"]);
    local.wait_healthy("c");
    assert_eq!(rows(&local, "c"), 3);

    // What would count to nobody, or to someone else, or could not be removed, is refused.
    let group = fs::metadata(local.workspace_dir("b").join("files")).expect("its files").uid();
    for refused in [
        "btrfs subvolume create /workspace/s".to_owned(),
        format!("btrfs subvolume create -i 1/{group} /workspace/s"),
        "btrfs subvolume snapshot -r /workspace /workspace/s".to_owned(),
        "btrfs property set /workspace ro true".to_owned(),
    ] {
        let out = local.inside("a", &refused);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("Operation not permitted"), "{refused}: {said}");
    }
    let dir = local.workspace_dir("a");
    local.ok(&["delete", "a", "--yes", "--force"]);
    eventually("it is gone", || (!dir.exists()).then_some(()));
    assert_eq!((rows(&local, "b"), rows(&local, "c")), (6.into(), 4.into()));
}

#[test]
fn objects_count_as_what_their_workspace_takes() {
    for server in [storage::seaweedfs(), storage::minio()] {
        let Some(stored) = Stored::start_on_image(Path::new(BINARY), server, ("ext4", MIB), &RESERVE) else {
            continue;
        };
        let local = &stored.local;
        for workspace in ["a", "b"] {
            local.ok(&["up", workspace, "-c", "--no-attach", "--wait"]);
        }
        stored.python("b", "s3.put_object(Bucket=bucket, Key='kept', Body=b'hello'); tell(0)");
        // Until its runtime is put to sleep, and this with it.
        let fill =
            stored.script("for n in range(90): s3.put_object(Bucket=bucket, Key='%d' % n, Body=os.urandom(20 << 20))");
        let filled = local.run(&["run", "a", "--service", "web", "--", "python3", "-c", &fill]);
        assert!(!filled.status.success(), "all of it found room");
        wait_asleep_for_the_disk(local);
        assert!(free(local) > EMERGENCY, "{}", free(local));
        let file = local.dir().join("file");
        fs::write(&file, "x").expect("written");
        let refused = local.run(&["s3", "a", "put", &file.to_string_lossy()]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("took the space"), "{said}");
        // The other one reads and writes.
        stored.python("b", "s3.put_object(Bucket=bucket, Key='more', Body=b'x' * 1000000); tell(0)");
        assert_eq!(local.ok(&["s3", "b", "get", "kept", "-"]), "hello");
    }
}
