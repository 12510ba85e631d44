//! PostgreSQL: what a workspace's role and passwords open, and what whoever had the whole cluster would get.

use super::world::World;
use serde_json::json;

/// Statements that would reach a file, a program, a library, another role or the cluster's settings.
const REACHES_OUT: [&str; 26] = [
    "copy (select 1) to program 'id'",
    "copy secret from program 'id'",
    "copy (select 1) to '/tmp/of-postgres'",
    "copy secret from '/etc/passwd'",
    "select pg_read_file('/etc/passwd')",
    "select pg_read_binary_file('postgresql.conf')",
    "select pg_ls_dir('/')",
    "select pg_stat_file('/etc/passwd')",
    "select pg_file_write('x', 'x', false)",
    "select lo_import('/etc/passwd')",
    "select lo_export(lo_from_bytea(0, 'x'), '/tmp/of-postgres')",
    "load '/tmp/of-a.so'",
    "create function f() returns int language c as '/tmp/of-a.so', 'f'",
    "create language plpython3u",
    "create extension amcheck",
    "alter system set archive_command = 'id'",
    "create role other superuser login",
    "create role other login",
    "alter role app superuser",
    "alter role envforge password 'known'",
    "grant pg_execute_server_program to app",
    "set role envforge",
    "select rolpassword from pg_authid",
    "create server files foreign data wrapper file_fdw",
    "create server other foreign data wrapper postgres_fdw options (host 'localhost')",
    "select get_raw_page('pg_authid', 0)",
];

#[test]
fn the_owner_of_a_database_reaches_no_file_program_library_or_role_and_no_neighbour_through_its_server() {
    let Some(world) = World::get() else { return };
    let neighbour = world.address("b");
    let own = world.of("a", "DATABASE_URL");
    let password = own.split([':', '@']).nth(2).expect("a password");
    let socket = "host=/run/envforge-data/postgresql-socket";
    let script = format!(
        r#"
import subprocess
def ask(sql): return subprocess.run(['psql', os.environ['DATABASE_URL'], '-XAtqc', sql], capture_output=True, text=True)
def to(connection): return "select * from dblink('%s', 'select 1') as x(n int)" % connection
outside = [to('{socket} dbname=app user=envforge'), to('{socket} dbname=app user=app'),
           to('host=localhost dbname=app user=envforge password=envforge'),
           to('host={neighbour} dbname=app user=app password=x connect_timeout=2')]
tell({{'open': [sql for sql in {tries} + outside if ask(sql).returncode == 0],
      'own': ask(to('host=localhost dbname=app user=app password={password}')).stdout.strip(),
      'left': os.path.exists('/tmp/of-postgres')}})
"#,
        tries = serde_json::to_string(&REACHES_OUT).expect("JSON"),
    );
    let tried = world.inside("a", &script);
    assert_eq!(tried, json!({ "open": [], "own": "1", "left": false }), "the last of which shows that it was tried");
    world.unharmed(&["a", "b"], "what the owner of a database may try");
}

#[test]
fn no_password_of_one_database_opens_another_whichever_of_the_two_is_a_fork_of_the_other() {
    let Some(world) = World::get() else { return };
    let local = world.local();
    for (from, whose) in [("a", "b"), ("b", "a"), ("a", "f"), ("f", "a"), ("a", "c")] {
        // All listen on the same address, each in its own network: the cluster that answers is one's own.
        let url = world.of(whose, "DATABASE_URL");
        assert_ne!(url, world.of(from, "DATABASE_URL"));
        let out = local.inside(from, &format!("psql '{url}' -XAtqc 'table secret'"));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("password authentication failed"), "{whose} in {from}: {said}");
        assert!(out.stdout.is_empty());
        if whose != "c" {
            let address = world.address(whose);
            let out = local.inside(
                from,
                &format!("PGCONNECT_TIMEOUT=2 psql '{}' -XAtqc 'table secret'", url.replace("localhost", &address)),
            );
            assert!(!out.status.success() && out.stdout.is_empty(), "{whose} from {from} by its address");
        }
    }
    // The superuser's password of a source is not that of its fork either.
    for (at, of) in [("f", "a"), ("a", "f"), ("b", "a")] {
        let (let_in, said) = world.as_superuser(at, of, "select 1");
        assert!(!let_in && said.contains("password authentication failed"), "{of} at {at}: {said}");
    }
    assert_eq!(world.as_superuser("a", "a", "select 1"), (true, "1".into()), "each is that of its own");
    world.unharmed(&["a", "b", "f"], "passwords of others");
}

#[test]
fn whoever_has_a_whole_cluster_is_still_in_its_workspace_and_reaches_no_other() {
    let Some(world) = World::get() else { return };
    let local = world.local();
    let run = format!("/run/envforge/{}", local.installation());
    let pid = local.server(0, "database");
    let theirs = local.server(1, "database");
    let mut probes =
        String::from("tcp() { timeout 2 bash -c \"exec 3<>/dev/tcp/$1/$2\" 2>/dev/null && echo LEAK tcp $1 $2; }; ");
    for port in [3000, 5432, 6379, 9000, 1025] {
        probes.push_str(&format!("tcp {} {port} & ", world.address("b")));
    }
    for other in ["b", "c", "f"] {
        let dir = local.workspace_dir(other);
        for part in ["", "data", "data/postgresql", "data/postgresql-socket", "files", "state"] {
            let path = dir.join(part);
            assert!(path.exists(), "{}", path.display());
            probes.push_str(&format!("[ -e {0} ] && echo LEAK {0}; ", path.display()));
        }
    }
    probes.push_str(&format!(
        "ls {run} {home} 2>/dev/null; [ -e /proc/{theirs} ] && echo LEAK process; ls /proc/{theirs}/root 2>/dev/null; \
         kill -0 {theirs} 2>/dev/null && echo LEAK signal; cat /etc/shadow 2>/dev/null; \
         cat /run/envforge/host.sock 2>/dev/null; \
         curl -sS -m 2 --unix-socket /run/envforge/host.sock http://x/v1/workspaces 2>/dev/null; \
         cat /workspace/.envforge/env/* /workspace/secret 2>/dev/null; \
         grep CapEff /proc/self/status | grep -v 0000000000000000; grep NoNewPrivs /proc/self/status | grep -v 1; \
         wait; echo end as $(id -u) in $(readlink /proc/self/ns/net)",
        home = local.home().display(),
    ));
    local.inside_ok("a", &format!("cat > /tmp/probe.sh <<'END'\n{probes}\nEND\nchmod 644 /tmp/probe.sh"));
    let sql = "create temp table said(t text); copy said from program 'bash /tmp/probe.sh'; table said";
    let (went, said) = world.as_superuser("a", "a", sql);
    // Nor by the wrapper for clusters elsewhere, with the password that opens it here.
    let password = std::fs::read_to_string(local.workspace_dir("a").join("state/postgresql.password")).expect("it");
    let by_wrapper = |host: &str| {
        let sql = format!(
            "begin; create server other foreign data wrapper postgres_fdw options (host '{host}', dbname 'app', connect_timeout '2'); \
             create user mapping for envforge server other options (user 'envforge', password '{}'); \
             create foreign table there(t text) server other options (table_name 'secret'); table there; rollback",
            password.trim()
        );
        world.as_superuser("a", "a", &sql)
    };
    assert_eq!(by_wrapper("localhost"), (true, "of a".into()), "it works");
    let (reached, told) = by_wrapper(&world.address("b"));
    assert!(!reached && told.contains("could not connect"), "{told}");
    let about = std::fs::metadata(format!("/proc/{pid}")).expect("the server");
    let network = std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("its network");
    let own = format!("end as {} in {}", std::os::unix::fs::MetadataExt::uid(&about), network.display());
    assert!(went && said == own, "{said}\nnot {own}");
}
