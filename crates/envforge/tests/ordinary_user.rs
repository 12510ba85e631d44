//! The product as an ordinary user: what user namespaces allow. Run as root, which makes the user; it is left out where
//! that or user namespaces are missing.

use envforge_testkit::{
    fixture::Fixture,
    local::{Local, User},
};
use serde_json::Value;
use std::{fs, os::unix::process::CommandExt, path::Path, process::Command};

/// A user of the machine for one test, removed when dropped (PostgreSQL refuses a number without a name).
struct Ordinary(User);

fn name() -> String {
    format!("ef-test-{}", std::process::id())
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        // A user that is left behind harms nothing but the next look at passwd.
        let _ = Command::new("userdel").arg(name()).status();
    }
}

impl Ordinary {
    /// `None`, with the reason on standard error, where the test cannot be done.
    #[allow(clippy::print_stderr)]
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("left out: only root can become another user");
            return None;
        }
        let made = Command::new("useradd").args(["-M", "-N", "-d", "/nonexistent", &name()]).status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("left out: useradd cannot make a user");
            return None;
        }
        let known = nix::unistd::User::from_name(&name()).expect("passwd").expect("the user that was made");
        let user = Self(User { uid: known.uid.as_raw(), gid: known.gid.as_raw() });
        let probe = Command::new("unshare").args(["-Urpfn", "true"]).uid(user.0.uid).gid(user.0.gid).status();
        if !probe.is_ok_and(|status| status.success()) {
            eprintln!("left out: this machine lets no ordinary user make user namespaces");
            return None;
        }
        Some(user)
    }

    fn processes(&self) -> Vec<String> {
        let of = |entry: fs::DirEntry| {
            use std::os::unix::fs::MetadataExt;
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let is_theirs = entry.metadata().ok()?.uid() == self.0.uid;
            let state = fs::read_to_string(entry.path().join("stat")).ok()?;
            let gone = state.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z"));
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            (is_theirs && !gone).then(|| format!("{pid} {}", String::from_utf8_lossy(&line).replace('\0', " ")))
        };
        fs::read_dir("/proc").expect("proc").flatten().filter_map(of).collect()
    }
}

fn start(user: &Ordinary) -> (Local, Fixture) {
    let local = Local::start_as(Path::new(env!("CARGO_BIN_EXE_envforge")), Some(user.0.clone()));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    (local, fixture)
}

fn sessions(local: &Local, workspace: &str) -> Vec<Value> {
    local.json(&["workspace", "usage", workspace])["sessions"].as_array().cloned().unwrap_or_default()
}

#[test]
fn an_ordinary_user_has_two_branches_awake_at_once_and_loses_nothing_by_sleep_or_crashes() {
    let Some(user) = Ordinary::new() else { return };
    let (local, _fixture) = start(&user);
    for branch in ["one", "two"] {
        local.ok(&["up", branch, "-c", "--no-attach"]);
    }
    for branch in ["one", "two"] {
        local.wait_healthy(branch);
    }

    // The same port twice, each with its own data.
    let one = local.curl_json("one", "http://localhost:3000/add?text=x");
    let two = local.curl_json("two", "http://localhost:3000/");
    assert_eq!((&one["branch"], &one["rows"]), (&"one".into(), &1.into()));
    assert_eq!((&two["branch"], &two["rows"]), (&"two".into(), &0.into()));
    local.curl("one", "http://localhost:3000/set?v=kept");
    local.ok(&["exec", "one", "--", "sh", "-c", "echo mine > /workspace/mine.txt; echo x > /tmp/only-one"]);
    assert_ne!(local.run(&["exec", "two", "--", "cat", "/tmp/only-one"]).status.code(), Some(0));

    // The person is who they are, sees the workspace's processes alone, and neither its neighbours nor the home.
    assert_eq!(local.ok(&["exec", "one", "--", "id", "-u"]).trim(), user.0.uid.to_string());
    let seen = local.ok(&["exec", "one", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
    assert!(seen.contains("web.js") && !seen.contains("supervise"), "{seen}");
    let home = local.home().join("workspaces");
    assert_ne!(local.run(&["exec", "one", "--", "ls", &home.to_string_lossy()]).status.code(), Some(0));
    let rights = local.ok(&["exec", "one", "--", "grep", "-E", "^Cap(Prm|Eff|Amb):", "/proc/self/status"]);
    assert!(rights.lines().all(|line| line.ends_with("0000000000000000")), "{rights}");

    // Status and signals of commands pass through the door.
    assert_eq!(local.run(&["exec", "one", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(local.run(&["exec", "one", "--", "sh", "-c", "kill -TERM $$"]).status.code(), Some(143));

    // Killed: the daemon, then the supervisor. Services survive the one, data survives both.
    let pid = local.curl_json("one", "http://localhost:3000/")["pid"].clone();
    kill(part(&local, "host"));
    local.wait_healthy("one");
    assert_eq!(local.curl_json("one", "http://localhost:3000/")["pid"], pid);
    kill(supervisor(&local, "one"));
    local.wait_for("one", "back", |status| {
        let all = status["services"].as_array().cloned().unwrap_or_default();
        status["runtime"]["state"] == "awake"
            && all.iter().all(|s| s["state"] == "healthy")
            && local.run(&["exec", "one", "--", "curl", "-sf", "-m", "5", "localhost:3000"]).status.success()
            && local.curl_json("one", "http://localhost:3000/")["pid"] != pid
    });
    assert_eq!(local.curl_json("one", "http://localhost:3000/")["rows"], 1);
    assert_eq!(sessions(&local, "one").len(), 1, "one unbroken window");

    // A run ends with what it left behind, though that cleared its environment and led a session of its own.
    local.ok(&["run", "one", "--service", "web", "--", "sh", "-c", "env -i setsid sleep 4711 >/dev/null 2>&1 &"]);
    let command_lines = ["exec", "one", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"];
    assert!(!local.ok(&command_lines).contains("sleep 4711"));

    // Whoever kills the door from inside dies with it, and what is left behind is the runtime's.
    let escape = "setsid sleep 4712 >/dev/null 2>&1 & kill -9 $PPID; sleep 60";
    assert_eq!(local.run(&["exec", "one", "--", "sh", "-c", escape]).status.code(), Some(137));
    assert!(local.ok(&command_lines).contains("sleep 4712"));

    // Sleep ends what runs; the shell goes on.
    local.ok(&["sleep", "one", "--wait"]);
    local.wait_asleep("one");
    let left = local.ok(&command_lines);
    assert!(!left.contains("web.js") && !left.contains("postgres") && !left.contains("sleep 4712"), "{left}");
    let slept = sessions(&local, "one");
    assert!(slept.len() == 1 && slept[0]["ended_at"].is_string(), "{slept:?}");

    // Awake again with everything as it was.
    local.ok(&["up", "one", "--no-attach", "--wait"]);
    let page = local.curl_json("one", "http://localhost:3000/");
    assert_eq!((&page["rows"], &page["key"]), (&1.into(), &"kept".into()));
    assert_eq!(local.ok(&["exec", "one", "--", "cat", "/workspace/mine.txt"]), "mine\n");

    // What holds a workspace's namespaces was killed: everything in it ended, and comes back.
    kill(init_of(&local, &user, "one"));
    local.wait_for("one", "back", |status| {
        status["runtime"]["state"] == "awake"
            && local.run(&["exec", "one", "--", "curl", "-sf", "-m", "5", "localhost:3000"]).status.success()
    });
    assert_eq!(local.curl_json("one", "http://localhost:3000/")["rows"], 1);

    local.ok(&["delete", "two", "--yes", "--force"]);
    assert_eq!(local.run(&["status", "two"]).status.code(), Some(3));
    drop(local);
    assert_eq!(user.processes(), Vec::<String>::new(), "nothing is left of the installation");
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
}

fn part(local: &Local, part: &str) -> i32 {
    let status = local.json(&["local", "status"]);
    let found = status["parts"].as_array().and_then(|parts| parts.iter().find(|p| p["name"] == part));
    i32::try_from(found.and_then(|p| p["pid"].as_i64()).unwrap_or_else(|| panic!("no {part} in {status:#}")))
        .expect("a pid")
}

fn supervisor(local: &Local, workspace: &str) -> i32 {
    let id = local.status(workspace)["id"].as_str().expect("an id").to_owned();
    let state = local.home().join("workspaces").join(id).join("state/supervisor.pid");
    fs::read_to_string(state).expect("a supervisor").trim().parse().expect("a pid")
}

/// The process with number 1 in the workspace.
fn init_of(local: &Local, user: &Ordinary, workspace: &str) -> i32 {
    let space = local.ok(&["exec", workspace, "--", "readlink", "/proc/self/ns/pid"]);
    let is_init = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|at| at.to_string_lossy() == space.trim())
            && numbers.split_ascii_whitespace().last() == Some("1")
    };
    let all = user.processes();
    let pids = all.iter().filter_map(|line| line.split(' ').next()?.parse().ok());
    pids.into_iter().find(is_init).unwrap_or_else(|| panic!("no init of {space} in {all:#?}"))
}
