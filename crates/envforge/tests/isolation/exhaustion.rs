//! What a workspace uses up of what all share.

use super::world::World;
use envforge_testkit::machine::eventually;
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
