//! Two workspaces of one installation, awake at once.

use super::{reaches_nothing, two_awake, works};
use envforge_testkit::local::Local;
use std::{
    fs, io,
    net::{TcpListener, UdpSocket},
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixListener},
    process::Command,
};

/// A server inside a workspace, on every address of its network. Ends with the workspace.
fn serve(local: &Local, workspace: &str, port: u16) {
    let server = format!(
        "setsid node -e \"require('node:http').createServer((q, r) => r.end('reached')).listen({port}, '0.0.0.0')\" \
         >/dev/null 2>&1 </dev/null & curl -sS --retry 40 --retry-connrefused --retry-delay 1 -m 30 \
         http://$(hostname -I | tr -d ' '):{port}/"
    );
    assert_eq!(local.inside_ok(workspace, &server), "reached");
}

fn addresses_of_the_host() -> Vec<String> {
    let out = Command::new("hostname").arg("-I").output().expect("hostname");
    String::from_utf8_lossy(&out.stdout)
        .split_ascii_whitespace()
        .filter(|a| a.contains('.'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn no_port_of_a_neighbour_or_of_the_host_answers_and_the_way_out_is_there() {
    let (local, _fixture) = two_awake();
    serve(&local, "two", 8099);
    let neighbour = local.inside_ok("two", "hostname -I | tr -d ' '");
    let own_end = local.inside_ok("one", "ip route show default | cut -d' ' -f3");

    // Whoever is on the machine reaches nothing inside either.
    let inside: std::net::SocketAddr = format!("{neighbour}:8099").parse().expect("an address");
    let reached = std::net::TcpStream::connect_timeout(&inside, std::time::Duration::from_secs(1));
    assert!(reached.is_err(), "a workspace's port answers on the host");

    // Something listens on every address of the host, as servers of the machine do.
    let listener = TcpListener::bind("0.0.0.0:0").expect("listen");
    let datagrams = UdpSocket::bind("0.0.0.0:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    let udp = datagrams.local_addr().expect("address").port();
    let mut host = addresses_of_the_host();
    assert!(!host.is_empty());
    host.extend([own_end, "127.0.0.1".into(), "localhost".into(), "::1".into()]);
    listener.set_nonblocking(true).expect("non-blocking");
    datagrams.set_nonblocking(true).expect("non-blocking");
    // The listener works, seen from the host.
    drop(std::net::TcpStream::connect((host[0].as_str(), port)).expect("the host reaches itself"));
    listener.accept().expect("one connection");

    let control = local.json(&["local", "status"]).to_string();
    let control = control.split("127.0.0.1:").nth(1).and_then(|t| t.split(|c: char| !c.is_ascii_digit()).next());
    let control = control.expect("the control plane's port").to_owned();
    let mut probes = String::new();
    for address in &host {
        probes.push_str(&format!(
            "tcp {address} {port} & tcp {address} {control} & echo x >/dev/udp/{address}/{udp} & \n"
        ));
    }
    for port in ["3000", "4100", "5432", "6379", "8099"] {
        probes.push_str(&format!("tcp {neighbour} {port} &\n"));
    }
    // The neighbour's end of its own wire belongs to the host.
    let gateway = local.inside_ok("two", "ip route show default | cut -d' ' -f3");
    probes.push_str(&format!("tcp {gateway} {port} &\nwait 2>/dev/null\n"));
    reaches_nothing(&local, "one", &probes);
    let nobody = listener.accept().expect_err("nobody came");
    assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
    let nothing = datagrams.recv(&mut [0; 8]).expect_err("nothing came");
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);

    // One's own services do answer, and there is a way out of the machine.
    works(&local, "one", "curl -sf -m 5 http://localhost:3000/healthz");
    works(&local, "one", "ip route show default | grep -q 'via 100\\.'");
    works(&local, "one", "test -s /etc/resolv.conf");
}

#[test]
fn no_file_socket_or_control_group_of_a_neighbour_or_of_the_installation_is_there() {
    let (local, _fixture) = two_awake();
    let home = local.home();
    let run = format!("/run/envforge/{}", local.installation());
    let two = local.workspace_dir("two");
    local.inside_ok(
        "two",
        "for d in /tmp /var/tmp /dev/shm /workspace /run/lock; do echo s > $d/of-two; chmod 666 $d/of-two; done",
    );

    let mut forbidden = Vec::new();
    for path in [
        "control/owner.token",
        "control/host.token",
        "control/master.key",
        "host/ledger",
        "postgres/data",
        "git",
        "logs",
    ] {
        let path = home.join(path);
        assert!(path.exists(), "{} is what this test is about", path.display());
        forbidden.push(path);
    }
    for path in ["", "files", "tmp", "data", "logs", "state/resources.json", "state/runtime.json"] {
        let path = two.join(path);
        assert!(path.exists(), "{} is what this test is about", path.display());
        forbidden.push(path);
    }
    for path in ["host.sock", "pg", "w0/sup.sock", "w1/sup.sock", "w1/in/host.sock", "w0/ns/net", "w1/ns/mnt"] {
        let path = std::path::Path::new(&run).join(path);
        assert!(path.exists(), "{} is what this test is about", path.display());
        forbidden.push(path);
    }
    for place in ["/tmp", "/var/tmp", "/dev/shm", "/workspace", "/run/lock"] {
        forbidden.push(format!("{place}/of-two").into());
    }
    let mut probes = String::new();
    for path in &forbidden {
        probes.push_str(&format!("[ -e '{0}' ] && leak '{0}'\n", path.display()));
    }
    probes.push_str(&format!(
        "for entry in '{home}'/* '{home}'/.[!.]*; do [ -e \"$entry\" ] && leak \"$entry\"; done\n\
         ls -A /run/envforge | grep -vx host.sock\n\
         grep -l . /sys/fs/cgroup/* /sys/fs/cgroup/*/* 2>/dev/null | head -3\n\
         find /sys/fs/cgroup -name '*envforge*' 2>/dev/null | head -3\n\
         cut -d' ' -f5 /proc/self/mountinfo | grep '^/run/envforge/'\n\
         cat /etc/shadow 2>/dev/null && leak /etc/shadow\n",
        home = home.display()
    ));
    reaches_nothing(&local, "one", &probes);

    // Nothing of the machine can be written, wherever it lets everyone write: it would be a place to meet.
    let open = local.dir().join("open");
    fs::create_dir(&open).expect("mkdir");
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).expect("chmod");
    reaches_nothing(&local, "one", &format!("(echo x > '{0}/mark') 2>/dev/null && leak '{0}'", open.display()));
    let writable = "find / -maxdepth 3 \\( -path /proc -o -path /sys -o -path /workspace \\) -prune \
                    -o -type d -writable -print 2>/dev/null \
                    | grep -vxE '/tmp|/var/tmp|/dev/(shm|mqueue)|/run/lock|/run/user/[0-9]+'; true";
    assert_eq!(local.inside_ok("one", writable), "", "only its own directories can be written");
}

#[test]
fn no_process_key_queue_segment_or_abstract_socket_is_shared_with_a_neighbour() {
    let (local, _fixture) = two_awake();
    let pid = local.curl_json("two", "http://localhost:3000/")["pid"].to_string();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "pids are the machine's");
    local.inside_ok(
        "two",
        "ipcmk -p 0666 -M 4096 -Q -S 1 >/dev/null; if [ -d /dev/mqueue ]; then touch /dev/mqueue/of-two; fi",
    );
    assert_eq!(local.inside_ok("two", "ipcs -m | grep -c ' 666 '"), "1");

    // An abstract socket of the host, which belongs to a network, not to a file.
    let name = format!("envforge-test-{}", local.installation());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("listen");
    listener.set_nonblocking(true).expect("non-blocking");

    let probes = format!(
        "[ -e /proc/{pid} ] && leak 'process seen'\n\
         ls /proc | grep -qx {pid} && leak 'process listed'\n\
         kill -0 {pid} 2>/dev/null && leak 'process signalled'\n\
         (: < /proc/{pid}/mem) 2>/dev/null && leak 'memory'\n\
         (: < /proc/{pid}/environ) 2>/dev/null && leak 'environment'\n\
         kill -0 1 2>/dev/null && leak 'init signalled'\n\
         [ -e /proc/1 ] && leak 'init seen'\n\
         for kind in m q s; do ipcs -$kind | grep ' 666 '; done\n\
         ls /dev/mqueue 2>/dev/null\n\
         grep -a '@{name}' /proc/net/unix\n\
         curl -sS -m 2 --abstract-unix-socket '{name}' http://x/ 2>&1 | grep -v 'refused\\|connect'\n"
    );
    reaches_nothing(&local, "one", &probes);
    assert_eq!(listener.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);

    // Every namespace that makes this so is its own.
    let namespaces = "for n in net mnt ipc uts; do readlink /proc/self/ns/$n; done";
    let (one, two) = (local.inside_ok("one", namespaces), local.inside_ok("two", namespaces));
    for (one, two) in one.lines().zip(two.lines()) {
        let kind = one.split(':').next().unwrap_or_default();
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace").to_string_lossy().into_owned();
        assert!(one != two && one != host && two != host, "{kind}: {one} {two} {host}");
    }
    assert_eq!(one.lines().count(), 4);
}

#[test]
fn no_program_inside_gains_rights_and_nothing_is_inherited_from_the_daemon() {
    let (local, _fixture) = two_awake();
    let status = local.inside_ok("one", "cat /proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1", "setuid programs of the machine (crontab, su) have no power here");
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!(field("CapInh"), "0000000000000000");
    let user = local.inside_ok("one", "id -u");
    assert_eq!(field("Groups"), user, "no group but its own");
    // Terminals work all the same. The session stays until it was heard: a tmux without one forgets what was signalled.
    let terminal = "tmux() { command tmux -S $XDG_RUNTIME_DIR/probe \"$@\"; }; \
        tmux new-session -d 'tty > /tmp/tty; tmux wait-for -S said; exec sleep 600' && tmux wait-for said && \
        tmux kill-server; cat /tmp/tty";
    assert!(local.inside_ok("one", terminal).starts_with("/dev/pts/"));
    // Only the three standard streams, and the one that ls itself opens.
    assert_eq!(local.inside_ok("one", "ls /proc/self/fd | wc -l"), "4");
    // A key ring of the daemon's session would be one that every workspace holds.
    let keys =
        |workspace| local.inside_ok(workspace, "grep -o '^[0-9a-f]*.*keyring *_ses' /proc/keys | cut -d' ' -f1; true");
    let (one, two) = (keys("one"), keys("two"));
    assert!(one.is_empty() || one != two, "{one} {two}");
}

#[test]
fn nobody_else_on_the_machine_passes_through_to_what_is_a_workspaces_own() {
    let (local, _fixture) = two_awake();
    let dir = local.workspace_dir("one");
    local.inside_ok("one", "touch /tmp/private && chmod 0666 /tmp/private && chmod 0777 /workspace");
    let run = std::path::PathBuf::from(format!("/run/envforge/{}/w0", local.installation()));
    // Someone of another installation, and someone of the machine: neither owns anything here.
    for path in [dir.join("tmp/private"), dir.join("files"), dir.join("data"), dir.join("logs"), run.join("in")] {
        assert!(path.exists(), "{} is where it is looked for", path.display());
        let looked = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "stat"])
            .arg(&path)
            .output()
            .expect("setpriv");
        assert!(!looked.status.success(), "{} can be reached", path.display());
    }
}
