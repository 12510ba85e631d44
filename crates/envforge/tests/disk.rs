//! One workspace does not use up the disk that the others need: it stands still in time, or has a share of its own.

use envforge_testkit::{
    fixture::Fixture,
    local::{Local, program},
    machine::{cgroup_of, eventually, lives},
    storage::{self, Stored},
};
use serde_json::Value;
use std::{
    fs,
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

/// Writes a megabyte every few milliseconds, so that no machine is too fast for what is looked at.
const WRITER: &str = "exec python3 -c 'import time
f = open(\"/workspace/large\", \"wb\", 0)
while True: f.write(bytes(1 << 20)); time.sleep(0.005)'";

#[test]
fn who_fills_the_disk_stands_still_everyone_else_goes_on_and_it_goes_on_when_there_is_space() {
    let Some(local) = start("ext4", MIB, &RESERVE, |_| {}) else { return };
    let ballast = local.home().join("workspaces/.reserve");
    eventually("the ballast is taken", || {
        fs::metadata(&ballast).is_ok_and(|about| about.len() == BALLAST).then_some(())
    });
    let pid = local.curl_json("b", "http://localhost:3000/")["pid"].clone();
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
    assert_eq!(fs::metadata(&ballast).expect("the ballast").len(), BALLAST, "it was not needed");
    let usage = local.json(&["workspace", "usage", "a"]);
    assert_eq!(usage["sessions"][0]["reason"], "disk", "{usage:#}");
    assert!(local.ok(&["logs", "a", "system"]).contains("disk is nearly full"));

    // A daemon that was killed leaves nobody stopped: what still writes is judged anew.
    local.kill("host");
    eventually("it goes on", || states(&local, "python3").into_iter().find(|(_, state)| *state != 'T'));
    eventually("it is stopped again", || (states(&local, "python3") == [stopped]).then_some(()));
    assert_eq!(rows(&local, "b"), added + 1);
    added += 1;
    assert!(free(&local) > EMERGENCY, "{}", free(&local));

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

    // Its user makes room, in its shell.
    local.inside_ok("a", "truncate -s 1M /workspace/large");
    eventually("the writer goes on", || (!states(&local, "python3").contains(&stopped)).then_some(()));
    drop(writer);
    local.inside_ok("a", &format!("kill {} 2>/dev/null; rm /workspace/large", stopped.0));
    eventually("it ended", || (!lives(stopped.0)).then_some(()));
    local.wait_for("a", "free to go on", |status| status["shell"]["reason"].is_null());
    local.ok(&["wake", "a", "--wait"]);
    assert_eq!(rows(&local, "a"), 2);
    local.ok(&["snapshot", "create", "b"]);
}

#[test]
fn all_of_the_disk_taken_by_one_call_is_given_back_to_the_others_while_its_taker_stands_still() {
    let Some(local) = start("ext4", MIB, &RESERVE, |_| {}) else { return };
    let ballast = local.home().join("workspaces/.reserve");
    eventually("the ballast is taken", || ballast.exists().then_some(()));
    local.inside_ok("a", &format!("fallocate -l {} /workspace/large", free(&local) - (1 << 20)));
    eventually("the ballast is given back", || (!ballast.exists()).then_some(()));
    let shell = cgroup_of(&local.installation()).join("w0/shell/cgroup.freeze");
    assert_eq!(fs::read_to_string(&shell).expect("its group").trim(), "1");
    assert!(free(&local) > EMERGENCY, "{}", free(&local));
    for added in 2..20 {
        assert_eq!(rows(&local, "b"), added);
    }
    wait_asleep_for_the_disk(&local);
    // Whoever runs the host makes room.
    fs::remove_file(local.workspace_dir("a").join("files/large")).expect("remove");
    eventually("it goes on", || (fs::read_to_string(&shell).ok()?.trim() == "0").then_some(()));
    eventually("the ballast is taken again", || ballast.exists().then_some(()));
    local.ok(&["wake", "a", "--wait"]);
    assert_eq!((rows(&local, "a"), rows(&local, "b")), (2.into(), 20.into()));
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

    // A user makes subvolumes in subvolumes; all of it goes.
    local.inside_ok("a", "btrfs subvolume create /workspace/s && mkdir -p /workspace/s/d/e && btrfs subvolume create /workspace/s/d/t && mkdir -p /workspace/s/d/t/x/y && echo 1 > /workspace/s/d/t/x/y/z");
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
