//! Redis: it has no password and does much for its clients. What it does not do is read or write anything but its own
//! data, for a source as little as for its fork.

use super::world::World;
use serde_json::json;
use std::process::Command;

/// What a client may ask of it.
const TRIES: &str = include_str!("redis.py");

const GET: &str = "import subprocess\ntell([subprocess.run(['redis-cli', '--raw', 'get', key], capture_output=True, \
                   text=True).stdout.strip() for key in ('secret', 'later', 'gone')])";

fn ask(world: &World, workspace: &str, words: &str) -> String {
    world.local().inside_ok(workspace, &format!("redis-cli --raw {words}"))
}

#[test]
fn a_redis_that_does_whatever_its_client_says_reaches_nothing_of_others_and_a_fork_and_its_source_go_their_own_ways() {
    let Some(world) = World::get() else { return };
    let local = world.local();
    world.open("r");
    for key in ["secret", "own", "gone"] {
        ask(&world, "r", &format!("set {key} 'of r'"));
    }
    local.ok(&["fork", "r", "rf"]);
    local.wait_healthy("rf");
    // What the one does later the other does not see.
    assert_eq!(world.inside("rf", GET), json!(["of r", "", "of r"]));
    ask(&world, "r", "set later r");
    ask(&world, "rf", "del gone");
    assert_eq!(
        (world.inside("r", GET), world.inside("rf", GET)),
        (json!(["of r", "r", "of r"]), json!(["of r", "", ""]))
    );

    let out = Command::new("hostname").arg("-I").output().expect("hostname");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let host: Vec<&str> = text.split_ascii_whitespace().filter(|address| address.contains('.')).take(2).collect();
    let dirs = |of: &str| ["data", "data/redis", "files"].map(|part| local.workspace_dir(of).join(part));
    for (from, others) in [("r", ["rf", "b"]), ("rf", ["r", "b"])] {
        let script = TRIES
            .replace("%FROM%", from)
            .replace("%OWN%", &world.address(from))
            .replace("%ADDRESSES%", &json!(others.map(|other| world.address(other))).to_string())
            .replace("%HOST%", &json!(host).to_string())
            .replace("%DIRS%", &json!(others.map(dirs).concat()).to_string());
        // `fails`: what is refused for others works for itself.
        assert_eq!(world.inside(from, &script), json!({ "found": {}, "fails": [] }), "{from} at {others:?}");
    }
    assert_eq!(world.inside("r", GET), json!(["of r", "r", "of r"]));
    assert_eq!(world.inside("rf", GET), json!(["of r", "", ""]));

    // It listens everywhere now, as its client had it do, and only its own workspace gets there.
    for (from, to) in [("r", "rf"), ("rf", "r"), ("b", "r")] {
        let reach = |address: &str| local.inside(from, &format!("timeout 2 redis-cli -h {address} ping")).status;
        assert!(!reach(&world.address(to)).success(), "{to} from {from}");
        if from != "b" {
            assert!(reach(&world.address(from)).success(), "{from} itself");
        }
    }
    // Nobody hears what is said in another one.
    let listen = "rm -f /tmp/heard; (timeout 60 redis-cli psubscribe '*' > /tmp/heard 2>&1 &); \
                  until grep -q psubscribe /tmp/heard; do :; done";
    local.inside_ok("r", listen);
    let receivers = ["r", "rf", "b"].map(|workspace| ask(&world, workspace, "publish news x"));
    assert_eq!(receivers, ["1", "0", "0"]);

    let at = [local.home(), "/tmp".into(), "/etc".into(), "/var/tmp".into()];
    let left = Command::new("find").args(at).args(["-name", "*of-redis-of-*"]).output().expect("find");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    assert!(local.workspace_dir("r").join("data/redis/dump.rdb").exists(), "it did write, where it may");
    world.unharmed(&["a", "b", "f"], "what a Redis can be told");
    for workspace in ["r", "rf"] {
        local.ok(&["delete", workspace, "--yes", "--force"]);
    }
}
