//! Sockets: what a workspace asks through its own leads to itself alone, whomever it names, and no other one is there, for
//! its user and for the user of its data services.

use super::world::World;
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

/// Requests for others by every route that there is.
const TRIES: &str = include_str!("sockets.py");

/// Holds an abstract socket in a workspace's network until it is dropped.
struct Held(Child);

impl Held {
    fn by(world: &World, workspace: &str) -> Self {
        let script = format!(
            "import socket, sys\none = socket.socket(socket.AF_UNIX)\none.bind('\\0held-by-{workspace}')\n\
             one.listen()\nprint('held', flush=True)\nsys.stdin.read()"
        );
        let mut command = world.local().command(&["exec", workspace, "--", "python3", "-c", &script]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut held = Self(command.spawn().expect("envforge runs"));
        let mut said = String::new();
        BufReader::new(held.0.stdout.take().expect("piped")).read_line(&mut said).expect("a line");
        assert_eq!(said.trim(), "held");
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Its standard input ends, and with that the process inside.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn sockets_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            sockets_below(&entry.path(), found);
        } else if kind.is_socket() {
            found.push(entry.path());
        }
    }
}

/// Every socket that the installation has on the machine.
fn doors(world: &World) -> Vec<PathBuf> {
    let (local, mut found) = (world.local(), Vec::new());
    let run = PathBuf::from(format!("/run/envforge/{}", local.installation()));
    sockets_below(&run, &mut found);
    sockets_below(&local.home(), &mut found);
    for there in
        ["host.sock", "dial.sock", "gateway.sock", "storage.sock", "w1/sup.sock", "w1/dial.sock", "w1/in/host.sock"]
    {
        assert!(found.contains(&run.join(there)), "{there} is what this test is about: {found:?}");
    }
    found
}

/// A workspace as others name it.
fn named(world: &World, workspace: &str) -> Value {
    let status = world.local().status(workspace);
    json!({ "slug": workspace, "id": status["id"], "url": status["services"][0]["url"] })
}

/// What must be as it was.
fn state(world: &World, workspace: &str) -> Value {
    let local = world.local();
    let status = local.status(workspace);
    let commands = local.json(&["workspace", "commands", workspace, "--limit", "200"]);
    // What tests have others run is no harm.
    let commands = commands["commands"].as_array().expect("commands").iter().filter(|c| c["kind"] != "RUN_COMMAND");
    let commands: Vec<_> = commands.map(|command| json!([command["id"], command["state"]])).collect();
    let services = status["services"].as_array().expect("services").iter();
    let services: Vec<_> = services.map(|service| json!([service["state"], service["since"]])).collect();
    let [runtime, shell] = ["runtime", "shell"].map(|part| json!([status[part]["state"], status[part]["since"]]));
    let links = local.json(&["links", workspace])["links"].clone();
    let snapshots = local.json(&["snapshot", "ls", workspace])["snapshots"].clone();
    json!([status["runtime"]["generation"], runtime, shell, services, commands, links, snapshots])
}

#[test]
fn whatever_a_workspace_asks_of_its_socket_for_another_one_is_not_found_and_no_other_socket_is_there() {
    let Some(world) = World::get() else { return };
    let local = world.local();
    let mut b = named(&world, "b");
    b["command"] = local.json(&["workspace", "commands", "b"])["commands"][0]["id"].clone();
    b["link"] = local.json(&["share", "b"])["id"].clone();
    b["snapshot"] = local.json(&["snapshot", "create", "b"])["snapshot"].clone();
    let others = [b, named(&world, "c"), named(&world, "f")];
    let ids: Vec<&Value> = others.iter().map(|other| &other["id"]).collect();
    let before = ["b", "c"].map(|workspace| state(&world, workspace));
    let doors = doors(&world);
    let held = Held::by(&world, "b");

    let text = |value: &dyn Fn() -> Result<String, serde_json::Error>| value().expect("JSON");
    let script = TRIES
        .replace("%FROM%", "a")
        .replace("%OWN%", &named(&world, "a").to_string())
        .replace("%OTHERS%", &text(&|| serde_json::to_string(&others)))
        .replace("%IDS%", &text(&|| serde_json::to_string(&ids)))
        .replace("%DOORS%", &text(&|| serde_json::to_string(&doors)));
    // `fails`: what is refused for another one works for oneself.
    assert_eq!(world.inside("a", &script), json!({ "found": {}, "fails": [] }));

    as_the_resource_user(&world, &doors);
    drop(held);
    for (workspace, before) in ["b", "c"].iter().zip(before) {
        assert_eq!(state(&world, workspace), before, "{workspace}");
    }
    local.ok(&["snapshot", "rm", "b", others[0]["snapshot"].as_str().expect("an id")]);
    local.ok(&["revoke", others[0]["link"].as_str().expect("an id")]);
    world.unharmed(&["a", "b", "f"], "requests by a socket");
}

/// Whoever took over a data service of `a`.
fn as_the_resource_user(world: &World, doors: &[PathBuf]) {
    let own = "/run/envforge-data/postgresql-socket/.s.PGSQL.5432";
    let script = format!(
        r"
import json, os, socket, stat
def opens(at):
    try: socket.socket(socket.AF_UNIX).connect(at)
    except OSError: return False
    return True
for at in json.loads('''{doors}''') + ['/run/envforge/host.sock', '\0held-by-b']:
    if opens(at) or (at[0] == '/' and os.path.lexists(at)): print('LEAK', at.replace('\0', '@'))
for at, _, names in os.walk('/'):
    for name in names:
        there = os.path.join(at, name)
        if not there.startswith(('/proc', '/sys', '/run/envforge-data/')) and stat.S_ISSOCK(os.lstat(there).st_mode) and opens(there): print('LEAK', there)
print('own', opens('{own}'))
",
        doors = serde_json::to_string(doors).expect("JSON"),
    );
    world.local().inside_ok("a", &format!("cat > /tmp/sockets.py <<'END'\n{script}\nEND\nchmod 644 /tmp/sockets.py"));
    let sql = "create temp table said(t text); copy said from program 'python3 /tmp/sockets.py'; table said";
    assert_eq!(world.as_superuser("a", "a", sql), (true, "own True".into()));
}
