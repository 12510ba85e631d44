//! Copies of whole workspaces: forks and snapshots of one that is written to all the time.
//!
//! Its service writes the same number to a file, to PostgreSQL and to Redis, in this order, over connections that it never
//! opens again, and tells at its start what it found: what a copy has is then a prefix in all three, at one cut.

use envforge_testkit::{
    fixture::bash,
    local::Local,
    machine::{eventually, sigkill},
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const WRITER: &str = r#"
const { spawn } = require('node:child_process');
const net = require('node:net'), fs = require('node:fs'), http = require('node:http'), readline = require('node:readline');
const lines = (input) => readline.createInterface({ input })[Symbol.asyncIterator]();
const pg = spawn('psql', [process.env.DATABASE_URL, '-XAtq', '-v', 'ON_ERROR_STOP=1'], { stdio: ['pipe', 'pipe', 'inherit'] });
const redis = net.connect(6379, '127.0.0.1');
pg.on('exit', () => process.exit(9));
redis.on('close', () => process.exit(8));
const rows = lines(pg.stdout), answers = lines(redis);
const sql = async (text) => { pg.stdin.write(text + '\n'); return (await rows.next()).value; };
const ask = async (text) => { redis.write(text + '\r\n'); return (await answers.next()).value; };
const log = '/workspace/numbers.log';
let n = 0;
(async () => {
  const written = fs.existsSync(log) ? fs.readFileSync(log, 'utf8').trim().split('\n').filter(Boolean).map(Number) : [];
  const file = written.length ? written[written.length - 1] : 0;
  const database = (await sql("select coalesce(max(n), 0) || ' ' || count(*) from t;")).split(' ').map(Number);
  const cache = Number((await ask('LLEN l')).slice(1));
  fs.appendFileSync('/workspace/found.log', JSON.stringify({ file, whole: written.length === file, database, cache }) + '\n');
  n = Math.max(file, database[0], cache);
  for (const [have, put] of [[file, (i) => fs.appendFileSync(log, i + '\n')], [database[0], (i) => sql(`insert into t values (${i}) returning n;`)], [cache, (i) => ask('RPUSH l ' + i)]])
    for (let i = have + 1; i <= n; i++) await put(i);
  for (;;) {
    n++;
    fs.appendFileSync(log, n + '\n');
    await sql(`insert into t values (${n}) returning n;`);
    await ask('RPUSH l ' + n);
    await new Promise((done) => setTimeout(done, 1));
  }
})();
http.createServer((req, res) => res.end(JSON.stringify({ n, pid: process.pid }))).listen(3000, '127.0.0.1');
"#;

// The table is made once: made again, the step would fail.
const YML: &str = r"version: 1
service: { name: Writer, command: node writer.js }
ports: { http: 3000 }
health: { tcp: http, interval: 200ms, start_period: 30s }
resources:
  database: { required: true }
  cache: { required: true }
environment:
  DATABASE_URL: { from: resource.database.url }
setup:
  table: ['psql $DATABASE_URL -v ON_ERROR_STOP=1 -c ''create table t(n int primary key)''']
runtime: { size: small, sleep: { after: 10m } }
";

struct Written {
    local: Local,
}

impl Written {
    fn start() -> Self {
        Self::on(Local::start(Path::new(env!("CARGO_BIN_EXE_envforge"))))
    }

    fn on(local: Local) -> Self {
        let dir = local.dir().to_owned();
        let at = dir.join("work");
        fs::create_dir(&at).expect("mkdir");
        fs::write(at.join("writer.js"), WRITER).expect("write");
        fs::write(at.join("envforge.yml"), YML).expect("write");
        let (at, bare) = (at.display(), dir.join("writer.git"));
        bash(&format!("cd {at} && git init -q -b main && git add -A && git commit -q -m first"));
        bash(&format!("git clone -q --bare {at} {}", bare.display()));
        let project = dir.join("project.yml");
        let text = format!(
            "project: writer\nservices:\n  writer: {{ repo: {} }}\nresources: {{ database: managed, cache: managed }}\n",
            bare.display()
        );
        fs::write(&project, text).expect("write");
        local.ok(&["project", "apply", "-f", &project.to_string_lossy()]);
        local.ok(&["up", "source", "-c", "--no-attach", "--wait"]);
        let it = Self { local };
        it.writes("source");
        it
    }

    fn now(&self, workspace: &str) -> (i64, i64) {
        let said = self.local.curl_json(workspace, "http://localhost:3000/");
        (said["n"].as_i64().expect("a number"), said["pid"].as_i64().expect("a pid"))
    }

    /// Waits until more is written; returns the process that writes.
    fn writes(&self, workspace: &str) -> i64 {
        let (before, _) = self.now(workspace);
        eventually("more is written", || {
            let (now, pid) = self.now(workspace);
            (now > before + 20).then_some(pid)
        })
    }

    /// What the service found when it started last: a prefix everywhere, at one cut.
    fn found(&self, workspace: &str) -> i64 {
        // It has looked when it goes on.
        self.writes(workspace);
        let text = self.local.inside_ok(workspace, "tail -n 1 /workspace/found.log");
        let found: Value = serde_json::from_str(&text).expect("JSON");
        let number = |value: &Value| value.as_i64().expect("a number");
        let (file, cache) = (number(&found["file"]), number(&found["cache"]));
        let (newest, rows) = (number(&found["database"][0]), number(&found["database"][1]));
        assert_eq!(found["whole"], true, "{found}");
        assert_eq!(newest, rows, "none is missing in between: {found}");
        assert!(file >= newest && newest >= cache && file - cache <= 1, "one cut: {found}");
        file
    }

    fn restarts(&self, workspace: &str) -> Value {
        self.local.status(workspace)["services"][0]["restarts"].clone()
    }

    fn in_database(&self, workspace: &str, sql: &str) -> String {
        let run = self.local.run(&[
            "run",
            workspace,
            "--service",
            "writer",
            "--",
            "sh",
            "-c",
            &format!("psql $DATABASE_URL -XAtc \"{sql}\""),
        ]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8_lossy(&run.stdout).trim().to_owned()
    }

    /// Everything that a copy may leave behind when it is cut short.
    fn assert_nothing_is_left(&self) {
        assert_eq!(self.in_database("source", "select count(*) from pg_replication_slots"), "0");
        for entry in fs::read_dir(self.local.home().join("workspaces")).expect("read").flatten() {
            for half in ["copying", "restoring", "replaced"] {
                assert!(!entry.path().join(half).exists(), "{}", entry.path().join(half).display());
            }
        }
    }

    fn group(&self, path: &str) -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let at = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        Path::new(at.expect("cgroup v2")).join(format!("envforge-{}", self.local.installation())).join(path)
    }

    fn is_still(&self, path: &str) -> bool {
        fs::read_to_string(self.group(path).join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }
}

#[test]
fn a_fork_of_a_workspace_that_is_written_to_has_a_prefix_at_one_cut_and_no_connection_of_the_source_breaks() {
    let it = Written::start();
    let local = &it.local;
    local.inside_ok(
        "source",
        "cd /workspace && echo mine > writer/uncommitted.txt && mkdir deep && ln -s /etc/passwd deep/link && \
         ln writer/uncommitted.txt deep/hard && mkfifo deep/fifo && chmod 700 deep && ln -s / root",
    );
    let pid = it.writes("source");
    let forked = local.json(&["fork", "source", "try-2"]);
    assert_eq!(
        (&forked["workspace"], &forked["source"], &forked["branch"]),
        (&"try-2".into(), &"source".into(), &"try-2".into())
    );
    assert_eq!(forked["command"]["kind"], "FORK_WORKSPACE", "{forked:#}");
    assert!(
        forked["stall_ms"].as_u64() > Some(0) && forked["took_ms"].as_u64() >= forked["stall_ms"].as_u64(),
        "{forked:#}"
    );

    // The source is awake, so the copy is woken, and set-up that was done for its data is done.
    local.wait_healthy("try-2");
    let cut = it.found("try-2");
    assert!(cut > 20);
    it.writes("try-2");
    assert_eq!(it.writes("source"), pid, "nothing of the source was restarted");
    assert_eq!(it.restarts("source"), 0);
    it.assert_nothing_is_left();

    // Both go their own way.
    assert_eq!(it.in_database("try-2", "insert into t values (-1) returning n").lines().next(), Some("-1"));
    assert_eq!(it.in_database("source", "select count(*) from t where n < 0"), "0");
    let url = |workspace| local.json(&["env", workspace, "--service", "writer", "--reveal"]).to_string();
    assert_ne!(url("source"), url("try-2"), "credentials of its own");

    let said = local.inside_ok(
        "try-2",
        "cd /workspace && cat writer/uncommitted.txt && git -C writer branch --show-current && readlink deep/link root && \
         stat -c '%U %h' writer/uncommitted.txt && stat -c %F deep/fifo && head -n 1 README.md && id -un && \
         git -C writer status --porcelain",
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..4], ["mine", "try-2", "/etc/passwd", "/"], "{said}");
    assert_eq!((lines[4], lines[5], lines[6]), (format!("{} 2", lines[7]).as_str(), "fifo", "# try-2"), "{said}");
    assert_eq!(lines[8], "?? uncommitted.txt", "{said}");

    // Asleep, nothing has to stand still and nothing is woken.
    local.ok(&["sleep", "source", "--wait"]);
    local.wait_asleep("source");
    let said = local.ok(&["fork", "source", "try-3", "--branch", "feature/three"]);
    assert!(said.starts_with("forked source to try-3 in "), "{said}");
    let status = local.status("try-3");
    assert_eq!((&status["runtime"]["state"], &status["branch"]), (&"asleep".into(), &"feature/three".into()));
    local.ok(&["wake", "try-3", "--wait"]);
    it.found("try-3");

    // From inside, the workspace may be left out; it is the source, and its owner the owner of the copy.
    let said = local.inside_ok("try-3", "envforge fork try-6");
    assert!(said.starts_with("forked try-3 to try-6 in "), "{said}");
    local.wait_healthy("try-6");

    // Names that are taken are refused, and nothing is left of a fork that cannot be.
    for taken in [&["fork", "source", "try-2"][..], &["fork", "source", "try-4", "--branch", "feature/three"]] {
        assert_eq!(local.run(taken).status.code(), Some(1), "{taken:?}");
    }
    local.inside_ok(
        "source",
        "git branch elsewhere && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m more",
    );
    let refused = local.run(&["fork", "source", "try-5", "--branch", "elsewhere"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has a branch elsewhere already"), "{refused:?}");
    eventually("it is gone again", || (!local.json(&["ls"]).to_string().contains("try-5")).then_some(()));
    let audit = local.json(&["audit"]).to_string();
    assert!(audit.contains("workspace.fork"), "{audit}");
}

#[test]
fn a_wrecked_workspace_becomes_what_its_snapshot_has_and_the_wreck_is_kept() {
    let it = Written::start();
    let local = &it.local;
    local.inside_ok("source", "echo kept > /workspace/writer/mine.txt");
    let pid = it.writes("source");
    let made = local.json(&["snapshot", "create", "source"]);
    let snapshot = made["snapshot"].as_str().expect("an id").to_owned();
    assert!(made["command"]["copied"]["size_bytes"].as_u64() > Some(0), "{made:#}");
    assert_eq!(it.writes("source"), pid);
    let list = local.json(&["snapshot", "ls", "source"]);
    assert_eq!(
        (&list["snapshots"][0]["id"], &list["snapshots"][0]["reason"]),
        (&snapshot.as_str().into(), &"asked".into())
    );

    let (wrecked_at, _) = it.now("source");
    it.in_database("source", "delete from t");
    local.inside_ok("source", "rm -rf /workspace/writer /workspace/numbers.log; echo wreck > /workspace/wreck");
    let refused = local.run(&["snapshot", "restore", "source", &snapshot]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("ends every process of its shell"), "{said}");
    let restored = local.json(&["snapshot", "restore", "source", &snapshot, "--yes"]);
    let kept = restored["snapshot"].as_str().expect("an id").to_owned();

    // It was awake, so it is woken again.
    local.wait_healthy("source");
    let found = it.found("source");
    assert!(found > 20 && found < wrecked_at, "{found} {wrecked_at}");
    assert_eq!(
        local.inside_ok("source", "cat /workspace/writer/mine.txt; ls /workspace"),
        "kept\nREADME.md\nfound.log\nnumbers.log\nwriter"
    );
    it.writes("source");

    // The wreck was kept, and can be gone back to as well.
    let list = local.json(&["snapshot", "ls", "source"]);
    assert_eq!(
        (&list["snapshots"][0]["id"], &list["snapshots"][0]["reason"]),
        (&kept.as_str().into(), &"before restore".into())
    );
    local.ok(&["sleep", "source", "--wait"]);
    local.ok(&["snapshot", "restore", "source", &kept, "--yes"]);
    assert_eq!(
        local.inside_ok("source", "cat /workspace/wreck; test -e /workspace/writer/mine.txt || echo none"),
        "wreck\nnone"
    );
    assert_eq!(local.status("source")["runtime"]["state"], "asleep");

    local.ok(&["snapshot", "rm", "source", &kept]);
    assert!(!local.json(&["snapshot", "ls", "source"]).to_string().contains(&kept));
    assert_eq!(local.run(&["snapshot", "rm", "source", &kept]).status.code(), Some(3));
    let id = local.status("source")["id"].as_str().expect("an id").to_owned();
    let asks = local.run(&["delete", "source"]);
    assert!(String::from_utf8_lossy(&asks.stderr).contains(&snapshot), "{asks:?}");
    local.ok(&["delete", "source", "--yes", "--force"]);
    assert!(!local.home().join("snapshots").join(id).exists());
}

#[test]
fn a_daemon_that_is_killed_while_the_source_stands_still_lets_it_go_on_and_the_fork_comes_to_its_end() {
    let it = Written::start();
    let local = &it.local;
    let pid = it.writes("source");
    std::thread::scope(|scope| {
        let forks = scope.spawn(|| local.json(&["fork", "source", "try-2"]));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !it.is_still("w0/runtime/services") {
            assert!(Instant::now() < deadline && !forks.is_finished(), "it never stood still");
            std::thread::yield_now();
        }
        sigkill(local.part("host"));
        eventually("it goes on", || (!it.is_still("w0/runtime/services") && !it.is_still("w0/shell")).then_some(()));
        let forked = forks.join().expect("forked");
        assert_eq!(forked["command"]["state"], "succeeded", "{forked:#}");
    });
    assert_eq!(it.writes("source"), pid, "nothing of the source was restarted");
    local.wait_healthy("try-2");
    it.found("try-2");
    it.assert_nothing_is_left();
}

#[test]
fn a_snapshot_that_a_killed_daemon_was_making_is_interrupted_and_nothing_is_left_of_it() {
    let it = Written::start();
    let local = &it.local;
    let snapshots = local.home().join("snapshots").join(local.workspace_dir("source").file_name().expect("an id"));
    std::thread::scope(|scope| {
        let makes = scope.spawn(|| local.run(&["snapshot", "create", "source"]));
        eventually("it is being made", || fs::read_dir(&snapshots).ok()?.next().map(drop));
        local.kill("host");
        let out = makes.join().expect("ended");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let whole = out.status.success() || said.contains("interrupted");
        assert!(whole, "{said}");
        let list = local.json(&["snapshot", "ls", "source"]);
        let listed = list["snapshots"].as_array().map(Vec::len);
        assert_eq!(listed, Some(usize::from(out.status.success())), "{list:#} {said}");
    });
    it.writes("source");
    let left = fs::read_dir(&snapshots).expect("read").count();
    let list = local.json(&["snapshot", "ls", "source"]);
    assert_eq!(list["snapshots"].as_array().map(Vec::len), Some(left));
    it.assert_nothing_is_left();
}

#[test]
fn a_fork_that_finds_no_space_fails_with_the_reason_and_leaves_the_source_as_it_is() {
    let binary = Path::new(env!("CARGO_BIN_EXE_envforge"));
    let Some(local) = Local::start_on_small_disk(binary, 420, &["host", "workspaces", "git", "templates"]) else {
        return;
    };
    let it = Written::on(local);
    let local = &it.local;
    let pid = it.writes("source");
    // Enough for what the source writes meanwhile, too little for another cluster. A moment without any would end its own.
    let left = nix::sys::statvfs::statvfs(local.disk().at()).expect("statvfs");
    let taken = left.blocks_available() * left.fragment_size() - (24 << 20);
    fs::write(local.disk().at().join("ballast"), vec![1; usize::try_from(taken).expect("small")]).expect("write");
    let refused = local.run(&["fork", "source", "try-2"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("No space left on device"), "{said}");
    local.disk().free();
    eventually("it is gone again", || (!local.json(&["ls"]).to_string().contains("try-2")).then_some(()));
    assert_eq!(it.writes("source"), pid);
    it.assert_nothing_is_left();
    local.ok(&["fork", "source", "try-2"]);
    local.wait_healthy("try-2");
    it.found("try-2");
}

/// The file system shares extents: the cluster stands still with everything else and is cloned.
fn on_an_image(kind: &str) {
    let binary = Path::new(env!("CARGO_BIN_EXE_envforge"));
    let Some(local) = Local::start_on_image(binary, kind, 1024, &[]) else { return };
    let it = Written::on(local);
    let local = &it.local;
    local.inside_ok("source", "head -c 50000000 /dev/urandom > /workspace/large");
    let pid = it.writes("source");
    local.json(&["fork", "source", "try-2"]);
    local.wait_healthy("try-2");
    it.found("try-2");
    let sums = |workspace| local.inside_ok(workspace, "sha256sum < /workspace/large");
    assert_eq!(sums("source"), sums("try-2"));
    let made = local.json(&["snapshot", "create", "source"]);
    let snapshot = made["snapshot"].as_str().expect("an id");
    assert_eq!(it.writes("source"), pid, "nothing of the source was restarted");
    it.in_database("source", "delete from t");
    local.ok(&["snapshot", "restore", "source", snapshot, "--yes"]);
    local.wait_healthy("source");
    it.found("source");
    it.assert_nothing_is_left();
}

#[test]
fn on_xfs_a_fork_and_a_snapshot_are_at_one_cut_as_well() {
    on_an_image("xfs");
}

#[test]
fn on_btrfs_a_fork_and_a_snapshot_are_at_one_cut_as_well() {
    on_an_image("btrfs");
}

#[test]
fn a_supervisor_that_is_killed_while_the_source_stands_still_leaves_nothing_still_and_the_fork_comes_to_its_end() {
    let it = Written::start();
    let local = &it.local;
    let supervisor = local.supervisor();
    std::thread::scope(|scope| {
        let forks = scope.spawn(|| local.json(&["fork", "source", "try-2"]));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !it.is_still("w0/runtime/services") {
            assert!(Instant::now() < deadline && !forks.is_finished(), "it never stood still");
            std::thread::yield_now();
        }
        sigkill(supervisor);
        eventually("it goes on", || (!it.is_still("w0/runtime/services") && !it.is_still("w0/shell")).then_some(()));
        let forked = forks.join().expect("forked");
        assert_eq!(forked["command"]["state"], "succeeded", "{forked:#}");
    });
    it.writes("source");
    local.wait_healthy("try-2");
    it.found("try-2");
    it.assert_nothing_is_left();
}
