//! What a workspace uses up of what all share.

use super::world::World;
use envforge_testkit::{local::Local, machine::eventually};
use serde_json::json;
use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

/// Carried at once for a workspace, each with two descriptors.
const CARRIED: usize = 256;
/// More than are carried at once, and no more than the kernel lets wait.
const CONNECTIONS: usize = 360;

/// Opens connections, asks for half of something on each, and waits to be told to end, but no longer than a minute.
const HOLD: &str = r"
import resource, socket, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = []
for number in range(COUNT):
    try: one = socket.create_connection(('127.0.0.1', 9000), 10)
    except OSError as error: sys.exit(print(f'{number}: {error}', flush=True))
    one.sendall(b'GET /half HTTP/1.1\r\nHost: localhost\r\nX-Rest: ')
    held.append(one)
print('held', flush=True)
for look in range(600):
    if os.path.exists('/tmp/let-go'): break
    time.sleep(0.1)
print('let go', flush=True)
";

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count()
}

/// Whoever opened them ends by itself; a test that fails does not wait for that.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn connections_that_a_workspace_opens_and_leaves_take_no_storage_from_another_and_its_own_is_back_afterwards() {
    let Some(world) = World::get() else { return };
    let local = world.local();
    world.open("e");
    let noted = fs::read_to_string(local.workspace_dir("e").join("state/supervisor.pid")).expect("its supervisor");
    let supervisor = noted.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a pid");
    let before = descriptors(supervisor);

    let script = world.stored.script(&HOLD.replace("COUNT", &CONNECTIONS.to_string()));
    let mut run = local.command(&["run", "e", "--service", "web", "--", "python3", "-c", &script]);
    let mut held = Held(run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("envforge runs"));
    let mut said = BufReader::new(held.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let first = said.next().unwrap_or_default();
    assert_eq!(first, "held");
    let more = || descriptors(supervisor).saturating_sub(before);
    eventually("as many as may be are carried", || (more() >= (CARRIED - 2) * 2).then_some(()));
    world.unharmed(&["b"], "connections of another that are left open");
    assert!(more() < CARRIED * 2 + 32, "{} descriptors for {CONNECTIONS} connections", more());

    local.inside_ok("e", "touch /tmp/let-go");
    assert!(said.any(|line| line == "let go") && held.0.wait().expect("it ends").success());
    let own = world.inside("e", "s3.put_object(Bucket=bucket, Key='k', Body=b'v'); tell(s3.get_object(Bucket=bucket, Key='k')['Body'].read().decode())");
    assert_eq!(own, "v");
    local.ok(&["delete", "e", "--yes", "--force"]);
}

/// Takes memory until it is killed, but no more than five GiB; says each half of one.
const MEMORY: &str = r"
import sys
held = []
for block in range(320):
    held.append(bytearray(b'x') * (16 << 20))
    if block % 32 == 31: print('more', flush=True)
print('all', flush=True)
";

/// Forks until it may not, has some of them spin, and waits to be told to end, but no longer than a minute and a half. In
/// Perl, since that forks fast.
const PROCESSES: &str = r#"
$| = 1;
$SIG{USR1} = sub {};
my ($parent, @children) = $$;
while (@children < 8192) {
    my $child = fork;
    unless (defined $child) { kill USR1 => @children[0 .. 3]; print 'full ', $! + 0, "\n"; last }
    unless ($child) { alarm 90; sleep; 1 while getppid == $parent; exit }
    push @children, $child;
}
for (1 .. 900) { last if -e '/tmp/let-go'; select undef, undef, undef, 0.1 }
kill KILL => @children;
waitpid $_, 0 for @children;
print "let go\n";
"#;

/// Opens terminals until it may not, and holds them until its standard input ends.
const TERMINALS: &str = r"
import os, resource, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = []
try:
    while len(held) < 4200: held.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))
except OSError as error: print('full', error.errno, len(held) > 100, flush=True)
sys.stdin.read()
";

/// What others go on with. Everything is asked for once.
const WORK: &str = r"
import subprocess
def said(*words): return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.strip()
s3.put_object(Bucket=bucket, Key='tried-by-b', Body=b'x')
tell([said('psql', os.environ['DATABASE_URL'], '-XAtqc', 'create table if not exists work(n serial); insert into work default values returning n > 0'),
      said('redis-cli', 'set', 'work', 'x'), s3.get_object(Bucket=bucket, Key='tried-by-b')['Body'].read().decode(),
      said('curl', '-s', '-o', '/dev/null', '-w', '%{http_code}', 'http://localhost:3000/')])
";

/// A program in a service of a workspace and one in its shell.
fn in_both_layers(local: &Local, workspace: &str, [program, option, script]: [&str; 3]) -> [Child; 2] {
    let of_service = ["run", workspace, "--service", "web", "--", program, option, script];
    let of_shell = ["exec", workspace, "--", program, option, script];
    [&of_service[..], &of_shell[..]].map(|words| {
        let mut command = local.command(words);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("envforge runs")
    })
}

fn lines(of: &mut Held) -> impl Iterator<Item = String> + use<> {
    BufReader::new(of.0.stdout.take().expect("piped")).lines().map_while(Result::ok)
}

#[test]
fn a_workspace_that_uses_up_its_memory_processes_and_processors_leaves_those_of_others_and_of_the_host_to_them() {
    let Some(world) = World::get() else { return };
    let local = world.local();
    world.open("x");
    let parts = ["keeper", "host", "control", "postgres"].map(|part| local.part(part));
    let before = local.status("b");
    let goes_on = |during: &str| {
        assert_eq!(world.inside("b", WORK), json!(["t", "OK", "x", "200"]), "{during}");
        let (now, then) = (&local.status("b")["services"][0], &before["services"][0]);
        assert_eq!((&now["state"], &now["since"]), (&then["state"], &then["since"]), "{during}");
        assert_eq!(local.inside_ok("b", "echo works"), "works", "{during}");
    };
    goes_on("nothing");

    // Each takes more than its layer has: it is ended for that, and nobody else is.
    let hogs = in_both_layers(local, "x", ["python3", "-c", MEMORY]).map(Held);
    goes_on("while another takes memory");
    for mut hog in hogs {
        let said: Vec<String> = lines(&mut hog).collect();
        assert!(said.len() > 1 && !said.contains(&"all".to_owned()), "{said:?}");
        assert!(!hog.0.wait().expect("it ends").success());
    }
    goes_on("after another took memory");

    let mut command = local.command(&["exec", "x", "--", "python3", "-c", TERMINALS]);
    let mut terminals = Held(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("envforge runs"));
    assert_eq!(lines(&mut terminals).next().as_deref(), Some("full 28 True"), "each workspace has so many");
    local.inside_ok("b", "true < /dev/ptmx");
    fs::File::open("/dev/ptmx").expect("the host has terminals");
    drop(terminals.0.stdin.take());
    assert!(terminals.0.wait().expect("it ends").success());

    let mut bombs = in_both_layers(local, "x", ["perl", "-e", PROCESSES]).map(Held);
    let mut said = bombs.each_mut().map(lines);
    let refused = said.each_mut().map(|lines| lines.next().unwrap_or_default());
    assert_eq!(refused, ["full 11", "full 11"], "each comes to the limit of its layer");
    for _ in 0..2 {
        goes_on("while another has as many processes as it may, some of which spin");
    }
    fs::write(local.workspace_dir("x").join("tmp/let-go"), "").expect("told");
    for (mut bomb, mut said) in bombs.into_iter().zip(said) {
        assert!(said.any(|line| line == "let go"));
        assert!(bomb.0.wait().expect("it ends").success());
    }
    local.wait_healthy("x");
    assert_eq!(local.inside_ok("x", "echo works"), "works");
    assert_eq!(["keeper", "host", "control", "postgres"].map(|part| local.part(part)), parts, "none was started again");
    local.ok(&["delete", "x", "--yes", "--force"]);
    local.inside_ok("b", "redis-cli del work");
    world.unharmed(&["a", "b"], "exhaustion in another one");
}
