//! A whole installation with the real PostgreSQL and stand-ins for the other programs.
//!
//! The program that the keeper runs is a shell script; where it needs Rust (the keeper itself, the control plane) it
//! runs this test binary with one of the ignored tests below.

use super::{
    LocalServer, PartState, doctor, ensure,
    paths::{Paths, Programs},
    scratch::Scratch,
    state::{Named, Record, keeper_lives},
    status, stop,
};
use envforge_api::{client::Endpoint, problem::Problem};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};
use tokio::time::{Instant, sleep};

struct Installation {
    dir: Scratch,
    paths: Paths,
    programs: Programs,
}

impl Installation {
    fn new() -> Self {
        let dir = Scratch::new();
        let exe = dir.path().join("envforge");
        let (me, run) = (std::env::current_exe().unwrap(), dir.path().join("run"));
        let account = if rustix::process::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").unwrap().expect("PostgreSQL's system user");
            format!(r#"{{"name":"postgres","uid":{},"gid":{}}}"#, user.uid, user.gid)
        } else {
            "null".to_owned()
        };
        let script = format!(
            r#"#!/bin/sh
case "$1 $2" in
"local keep") ENVFORGE_STAND_IN=1 exec {me} --exact local::tests::keeper_stand_in --ignored --nocapture ;;
"host prepare") [ ! -e {dir}/unprepared ] || {{ echo "the machine lacks a thing" >&2; exit 1; }}
    mkdir -p {run}; echo '{{"run":"{run}","postgres":{account},"postgres_cgroup":null}}' ;;
"host quiesce" | "host wipe") echo "$2" >> {dir}/calls ;;
server*) echo "$*" >> {dir}/calls; [ ! -e {dir}/broken ] || {{ echo "no master key" >&2; exit 3; }}
    ENVFORGE_FAKE_LISTEN=$5 exec {me} --exact local::tests::control_stand_in --ignored --nocapture ;;
host* | gateway*) echo "$*" >> {dir}/calls; echo ready; exec sleep 1000000 ;;
esac
"#,
            me = me.display(),
            run = run.display(),
            dir = dir.path().display(),
        );
        fs::write(&exe, script).unwrap();
        fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
        let paths = Paths::new(&dir.path().join("home"));
        Self { paths, programs: Programs { exe }, dir }
    }

    async fn ensure(&self) -> Result<LocalServer, Problem> {
        ensure::ensure(&self.paths, &self.programs, &|_| {}).await
    }

    async fn stop(&self) {
        stop::stop(&self.paths).await.unwrap();
    }

    fn record(&self) -> Record {
        Record::read(&self.paths).unwrap()
    }

    fn process(&self, part: &str) -> Named {
        self.record().part(part).unwrap().process.unwrap()
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default()
    }

    /// Waits until the part runs as another process than `before`.
    async fn replaced(&self, part: &str, before: Named) -> Named {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let now = self.record().part(part).unwrap().clone();
            match now.process {
                Some(process) if process != before && now.state == PartState::Running => return process,
                Some(_) | None if Instant::now() > deadline => panic!("{part} never came back: {now:?}"),
                Some(_) | None => sleep(Duration::from_millis(5)).await,
            }
        }
    }

    fn query(&self, sql: &str) -> String {
        let output = std::process::Command::new("psql")
            .args(["-XAtq", "-h"])
            .arg(self.dir.path().join("run/pg"))
            .args(["-U", "envforge", "-d", "envforge", "-c", sql])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Processes that have the home, or the directory above it, on their command line or as working directory.
    fn processes(&self) -> Vec<String> {
        let dir = self.dir.path().to_str().unwrap().to_owned();
        let of_it = |entry: &fs::DirEntry| {
            let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().replace('\0', " ");
            let env = fs::read_to_string(entry.path().join("environ")).unwrap_or_default();
            (cwd.starts_with(&dir) || line.contains(&dir) || env.contains(&format!("{dir}/home"))).then_some(line)
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| of_it(&entry)).collect()
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // Only a failed test leaves anything: end it so that it disturbs nobody.
        let Some(record) = Record::read(&self.paths) else { return };
        let parts = record.parts.iter().filter_map(|part| part.process);
        for process in std::iter::once(record.keeper).chain(parts).filter(|process| process.lives()) {
            kill(process, Signal::KILL);
        }
    }
}

fn kill(process: Named, signal: Signal) {
    assert!(process.lives(), "{process:?} is gone already");
    kill_process(Pid::from_raw(process.pid).unwrap(), signal).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while process.lives() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
}

#[tokio::test]
#[ignore = "run by the stand-in program only"]
async fn keeper_stand_in() {
    // Never the home of whoever runs all ignored tests.
    let (Some(home), Some(_)) = (std::env::var_os("ENVFORGE_HOME"), std::env::var_os("ENVFORGE_STAND_IN")) else {
        return;
    };
    let programs = Programs { exe: Path::new(&home).parent().unwrap().join("envforge") };
    super::keeper::keep(&Paths::new(Path::new(&home)), &programs).await;
    std::process::exit(0);
}

#[test]
#[ignore = "run by the stand-in program only"]
fn control_stand_in() {
    let Ok(listen) = std::env::var("ENVFORGE_FAKE_LISTEN") else { return };
    let control = Paths::new(Path::new(&std::env::var_os("ENVFORGE_HOME").unwrap())).control();
    let listener = TcpListener::bind(listen).unwrap();
    for token in ["owner.token", "host.token"] {
        fs::write(control.join(token), "t0ken\n").unwrap();
    }
    fs::write(control.join("address"), listener.local_addr().unwrap().to_string()).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    }
}

#[tokio::test]
async fn an_installation_starts_serves_and_stops_without_leaving_a_process() {
    let it = Installation::new();
    let server = it.ensure().await.unwrap();
    assert!(server.started);
    assert_eq!(server.token.expose(), "t0ken");
    let state = status::status(&it.paths);
    assert!(state.running && state.address == Some(server.endpoint.to_string()), "{state:?}");
    assert!(state.parts.iter().all(|part| part.state == PartState::Running && part.pid.is_some()), "{state:?}");
    assert_eq!(it.query("select current_setting('fsync') || current_setting('listen_addresses')"), "on");
    let calls = it.calls();
    assert!(calls.contains(&format!("--server {} --token-file", server.endpoint)), "{calls}");

    let again = it.ensure().await.unwrap();
    assert!(!again.started && again.endpoint == server.endpoint);

    it.stop().await;
    assert_eq!(it.processes(), Vec::<String>::new());
    assert!(!it.calls().contains("quiesce") && !keeper_lives(&it.paths));
    let state = status::status(&it.paths);
    assert!(!state.running && state.parts.iter().all(|part| part.pid.is_none() && part.state == PartState::Stopped));
    it.stop().await;

    let restarted = it.ensure().await.unwrap();
    assert_eq!(restarted.endpoint, server.endpoint, "the port is kept");
    it.stop().await;
}

#[tokio::test]
async fn a_part_that_is_killed_comes_back_and_the_others_go_on() {
    let it = Installation::new();
    it.ensure().await.unwrap();
    it.query("create table kept as select 42 as answer");
    for part in ["gateway", "host", "control", "postgres"] {
        let before = it.record();
        let killed = it.process(part);
        kill(killed, Signal::KILL);
        it.replaced(part, killed).await;
        let after = it.record();
        let noted = after.part(part).unwrap();
        assert_eq!((noted.restarts, noted.reason.as_deref()), (1, Some("killed by signal 9")));
        for other in before.parts.iter().filter(|other| other.name != part) {
            assert_eq!(after.part(&other.name).unwrap().process, other.process, "{part} took {} along", other.name);
        }
    }
    assert_eq!(it.query("select answer from kept"), "42");
    it.stop().await;
    assert_eq!(it.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_control_plane_that_must_take_another_port_takes_the_host_daemon_along() {
    let it = Installation::new();
    let server = it.ensure().await.unwrap();
    let (control, host) = (it.process("control"), it.process("host"));
    let Endpoint::Http { port, .. } = server.endpoint else { panic!("{}", server.endpoint) };
    kill(it.record().keeper, Signal::KILL);
    kill(control, Signal::KILL);
    // The last thread of the killed process may hold the port a moment longer. A lasting failure means that somebody
    // else of this machine was given it: as good.
    let deadline = Instant::now() + Duration::from_secs(5);
    let taken = loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(1)).await,
            done => break done,
        }
    };
    let moved = it.ensure().await.unwrap();
    assert_ne!(moved.endpoint, server.endpoint);
    it.replaced("host", host).await;
    assert!(it.calls().contains(&format!("--server {} --token-file", moved.endpoint)), "{}", it.calls());
    drop(taken);
    it.stop().await;
    assert_eq!(it.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn the_keeper_leaves_the_terminal_of_its_caller_and_ignores_its_end() {
    let it = Installation::new();
    it.ensure().await.unwrap();
    let keeper = it.record().keeper;
    let pid = Pid::from_raw(keeper.pid).unwrap();
    assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid, "a session of its own");
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", keeper.pid)).unwrap(), Path::new("/"));
    let files = fs::read_dir(format!("/proc/{}/fd", keeper.pid)).unwrap().flatten();
    let files: Vec<_> = files.filter_map(|file| fs::read_link(file.path()).ok()).collect();
    assert!(!files.iter().any(|file| file.to_string_lossy().starts_with("/dev/pts")), "{files:?}");
    kill_process(pid, Signal::HUP).unwrap();
    let before = it.process("host");
    kill(before, Signal::KILL);
    it.replaced("host", before).await;
    assert_eq!(it.record().keeper, keeper);
    it.stop().await;
}

#[tokio::test]
async fn two_calls_at_once_start_one_keeper() {
    let it = Installation::new();
    let (one, two, three) = tokio::join!(it.ensure(), it.ensure(), it.ensure());
    let all = [one.unwrap(), two.unwrap(), three.unwrap()];
    assert_eq!(all.iter().filter(|server| server.started).count(), 1);
    assert!(all.iter().all(|server| server.endpoint == all[0].endpoint));
    assert_eq!(it.calls().lines().filter(|line| line.starts_with("server")).count(), 1);
    it.stop().await;
    assert_eq!(it.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_killed_keeper_stops_nothing_and_the_next_one_takes_over() {
    let it = Installation::new();
    let server = it.ensure().await.unwrap();
    let before = it.record();
    kill(before.keeper, Signal::KILL);
    let again = it.ensure().await.unwrap();
    assert!(again.started && again.endpoint == server.endpoint);
    let after = it.record();
    assert_ne!(after.keeper, before.keeper);
    for part in &before.parts {
        assert_eq!(after.part(&part.name).unwrap().process, part.process, "{} was not taken over", part.name);
    }
    let adopted = it.process("control");
    kill(adopted, Signal::KILL);
    it.replaced("control", adopted).await;
    it.stop().await;
    assert_eq!(it.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn stop_ends_what_a_killed_keeper_left() {
    let it = Installation::new();
    it.ensure().await.unwrap();
    kill(it.record().keeper, Signal::KILL);
    it.stop().await;
    assert_eq!(it.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_where_the_log_is_and_leaves_nothing() {
    let it = Installation::new();
    fs::write(it.dir.path().join("broken"), "").unwrap();
    let problem = it.ensure().await.unwrap_err();
    assert_eq!(problem.message, "the control plane ended before it was ready (exit status 3): no master key");
    assert!(problem.hint.contains("control.log"), "{problem:?}");
    assert_eq!(it.processes(), Vec::<String>::new());

    fs::write(it.dir.path().join("unprepared"), "").unwrap();
    let problem = it.ensure().await.unwrap_err();
    assert!(problem.message.contains("the machine lacks a thing"), "{problem:?}");

    fs::remove_file(it.dir.path().join("broken")).unwrap();
    fs::remove_file(it.dir.path().join("unprepared")).unwrap();
    it.ensure().await.unwrap();
    it.stop().await;
}

#[tokio::test]
async fn reset_removes_everything_and_may_be_repeated() {
    let it = Installation::new();
    it.ensure().await.unwrap();
    stop::reset(&it.paths, &it.programs).await.unwrap();
    assert!(!it.paths.home().exists());
    assert_eq!(it.processes(), Vec::<String>::new());
    assert!(it.calls().ends_with("wipe\n"), "{}", it.calls());
    stop::reset(&it.paths, &it.programs).await.unwrap();
}

#[tokio::test]
async fn a_stop_leaves_the_work_of_workspaces_alone_unless_all_of_it_is_asked_for() {
    let it = Installation::new();
    it.ensure().await.unwrap();
    stop::stop(&it.paths).await.unwrap();
    assert!(!it.calls().contains("quiesce"));
    it.ensure().await.unwrap();
    stop::stop_all(&it.paths, &it.programs).await.unwrap();
    assert!(it.calls().ends_with("quiesce\n"), "{}", it.calls());
    assert_eq!(it.processes(), Vec::<String>::new());
}

#[tokio::test]
async fn doctor_names_what_is_missing_with_the_way_to_get_it() {
    let dir = Scratch::new();
    let findings = doctor::examine(&Paths::new(dir.path())).await;
    for finding in &findings {
        assert_eq!(finding.ok, finding.hint.is_empty(), "{finding:?}");
    }
    let postgres = findings.iter().find(|finding| finding.name == "postgres").unwrap();
    assert!(postgres.ok && postgres.required && postgres.found.contains("/bin"), "{postgres:?}");
}
