//! Tools of one's own machine reach what runs in a workspace, and nothing else does by it.

use envforge_testkit::{
    fixture::{Fixture, WEB_YML},
    forward::Forward,
    local::Local,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

fn start(yml: &str) -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    Fixture::commit(&fixture.web, "w", "envforge.yml", &yml.replace("after: 10m", "after: 11m"));
    fixture.apply(&local);
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    (local, fixture)
}

fn forward(local: &Local, target: &str) -> Forward {
    Forward::start(local.command(&["port-forward", "w", target, "--json"]))
}

/// The password as who may see it sees it.
fn password(local: &Local) -> String {
    let env = local.json(&["env", "w", "--service", "web", "--reveal"]);
    let url = env["variables"]["DATABASE_URL"].as_str().expect("the url");
    url.split([':', '@']).nth(2).expect("a password").to_owned()
}

fn psql(port: u16, password: &str, command: &str) -> Command {
    let mut psql = Command::new("psql");
    psql.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "app", "-d", "app", "-XAtc", command]);
    psql.env("PGPASSWORD", password).env("PGCONNECT_TIMEOUT", "30").stdin(Stdio::null());
    psql
}

fn text(out: &Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[test]
fn psql_and_redis_cli_of_this_machine_work_through_it_until_the_runtime_sleeps_and_again_after_a_wake() {
    let (local, _fixture) = start(WEB_YML);
    local.ok(&["sleep", "w", "--wait"]);
    let mut database = forward(&local, "database");
    assert_ne!(local.status("w")["runtime"]["state"], "asleep", "it wakes once");
    local.wait_healthy("w");
    let password = password(&local);
    assert!(!database.told.to_string().contains(&password), "{}", database.told);
    assert_eq!((&database.told["port"], &database.told["user"]), (&5432.into(), &"app".into()));
    let port = database.port();
    let ask = |command: &str| psql(port, &password, command).output().expect("psql runs");
    assert_eq!(text(&ask("select current_user || 1")), "app1");
    assert!(!psql(port, "wrong", "select 1").status().expect("psql runs").success());

    // Much of it, both ways.
    let lines = 200_000;
    let much = ask(&format!("copy (select repeat('x', 100) from generate_series(1, {lines})) to stdout"));
    assert_eq!(text(&much).lines().filter(|line| line.len() == 100).count(), lines);
    text(&ask("create table much(t text)"));
    let mut copy = psql(port, &password, "copy much from stdin").stdin(Stdio::piped()).spawn().expect("psql runs");
    let written = copy.stdin.take().expect("piped").write_all(&much.stdout);
    assert!(written.is_ok() && copy.wait().expect("it ends").success());
    assert_eq!(text(&ask("select count(*), sum(length(t)) from much")), format!("{lines}|{}", lines * 100));

    // And many at once.
    let many: Vec<_> = (0..20)
        .map(|n| psql(port, &password, &format!("select {n} from pg_sleep(0.2)")).stdout(Stdio::piped()).spawn())
        .collect();
    for (n, one) in many.into_iter().enumerate() {
        assert_eq!(text(&one.expect("psql runs").wait_with_output().expect("it ends")), n.to_string());
    }

    let mut cache = forward(&local, "cache");
    let redis = |args: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &cache.port().to_string()]).args(args).stdin(Stdio::null());
        text(&command.output().expect("redis-cli runs"))
    };
    redis(&["set", "k", "by way of a forwarded port"]);
    assert_eq!(local.ok(&["redis", "w", "--", "get", "k"]).trim(), "by way of a forwarded port");
    let big = redis(&["eval", "return string.rep('y', 20000000)", "0"]);
    assert!(big.len() == 20_000_000 && big.bytes().all(|octet| octet == b'y'));

    // It neither keeps awake what is put to sleep, nor wakes it.
    local.ok(&["sleep", "w", "--wait"]);
    assert!(!ask("select 1").status.success());
    database.wait_said("sleeps");
    assert_eq!(local.status("w")["runtime"]["state"], "asleep");
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(text(&ask("select count(*) from much")), lines.to_string());
    // A host daemon that was killed comes back before anyone notices, at whatever moment one asks.
    let mut web = forward(&local, "web");
    let page = format!("http://127.0.0.1:{}/healthz", web.port());
    for _ in 0..3 {
        local.kill("host");
        for n in 0..8 {
            let curl = Command::new("curl").args(["-sSf", "--max-time", "60", &page]).output().expect("curl runs");
            assert_eq!((text(&curl).as_str(), text(&ask("select 1")).as_str()), ("ok", "1"), "asked {n} times since");
        }
    }
    assert_eq!(web.interrupt(), Some(0));
    assert_eq!((database.interrupt(), cache.interrupt()), (Some(0), Some(0)));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "nothing listens any more");
}

/// Listens on the workspace's port 3005. `sum`: reads to the end, then tells how much that was and sends as much back.
/// `deaf`: takes a connection and reads nothing. `rude`: sends a little and breaks off.
const SERVER: &str = r"
import socket, struct, sys, time
at = socket.create_server(('127.0.0.1', 3005))
print('listens', flush=True)
while True:
    to, _ = at.accept()
    if sys.argv[1] == 'deaf':
        time.sleep(600)
    if sys.argv[1] == 'rude':
        to.sendall(b'half')
        time.sleep(0.3)
        to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        to.close()
        continue
    much = 0
    while octets := to.recv(65536):
        much += len(octets)
    to.sendall(b'%d\n' % much + b'z' * much)
    to.close()
";

/// A server in the workspace's shell; ends with this.
struct Server(std::process::Child);

impl Server {
    fn start(local: &Local, how: &str) -> Self {
        let mut command = local.command(&["exec", "w", "--", "python3", "-c", SERVER, how]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
        let mut said = [0; 7];
        child.stdout.as_mut().expect("piped").read_exact(&mut said).expect("it listens");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its command ends with the connection that it was asked for on.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(forward: &Forward) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, forward.port())).expect("it listens");
    stream.set_read_timeout(Some(envforge_testkit::local::PATIENCE)).expect("a limit");
    stream
}

#[test]
fn each_direction_has_its_own_end_and_pace_and_what_breaks_on_one_side_breaks_on_the_other() {
    let with_raw = WEB_YML.replace("ports: { http: 3000 }", "ports: { http: 3000, raw: 3005 }");
    let (local, _fixture) = start(&with_raw);
    let mut raw = forward(&local, "web.raw");
    assert_eq!(raw.told["port"], 3005);

    // Nothing listens: it is refused, and the reason is told.
    let refused = connect(&raw).read(&mut [0; 1]);
    assert!(!matches!(refused, Ok(1..)), "{refused:?}");
    raw.wait_said("nothing takes connections on port 3005");

    let server = Server::start(&local, "sum");
    let mut stream = connect(&raw);
    let much = vec![b'a'; 30_000_000];
    stream.write_all(&much).expect("taken");
    stream.shutdown(Shutdown::Write).expect("shut");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("a good end");
    assert!(answer.starts_with(b"30000000\nzzz") && answer.len() == 9 + much.len(), "{}", answer.len());
    drop(server);

    // Nobody reads at the far end: what is taken on the way is bounded.
    let server = Server::start(&local, "deaf");
    let mut stream = connect(&raw);
    stream.set_write_timeout(Some(Duration::from_secs(2))).expect("a limit");
    let mut taken = 0;
    let full = loop {
        match stream.write(&much) {
            Ok(written) => taken += written,
            Err(error) => break error,
        }
        assert!(taken < 200_000_000, "it takes whatever is sent");
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock, "{full}");
    drop((stream, server));

    let server = Server::start(&local, "rude");
    let mut stream = connect(&raw);
    let mut answer = Vec::new();
    let broken = stream.read_to_end(&mut answer).expect_err("a break is no end");
    assert_eq!((broken.kind(), &answer[..]), (ErrorKind::ConnectionReset, &b"half"[..]));
    drop(server);

    // What is not declared is not reached, whoever asks; what is taken already is said.
    let wrong = |args: &[&str]| {
        let out = local.run(&[&["port-forward", "w"], args].concat());
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, said) = wrong(&["web.nosuch"]);
    assert!(code == Some(3) && said.contains("web.raw"), "{said}");
    let (code, said) = wrong(&["queue"]);
    assert!(code == Some(3) && said.contains("no such queue"), "{said}");
    let (code, said) = wrong(&["web.raw", &raw.port().to_string()]);
    assert!(code == Some(1) && said.contains("cannot be listened on"), "{said}");
}

#[test]
fn in_the_workspace_itself_another_port_leads_to_a_service_without_naming_the_workspace() {
    let (local, _fixture) = start(WEB_YML);
    let script = "exec 3< <(exec envforge port-forward web 2>/dev/null); pid=$!; read -r address <&3
        curl -sS http://$address/healthz; kill -INT $pid; wait $pid; echo \" $? ${address%:*}\"";
    assert_eq!(local.inside_ok("w", script), "ok 0 127.0.0.1");
}
