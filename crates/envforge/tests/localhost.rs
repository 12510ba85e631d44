//! Localhost wakes: a connection from the shell of an idle runtime wakes it and passes.

use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    machine::{eventually, lives},
};
use std::{path::Path, process::Stdio};

fn start(after: &str) -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.sleeps_after("w", after);
    fixture.apply(&local);
    (local, fixture)
}

/// The nftables of the workspace's network.
fn rules(local: &Local) -> String {
    let network = format!("/run/envforge/{}/w0/ns/net", local.installation());
    let out = std::process::Command::new("nsenter")
        .args([&*format!("--net={network}"), "nft", "list", "ruleset"])
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .stderr(Stdio::null())
        .output()
        .expect("nsenter runs");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn led(local: &Local) {
    eventually("connections wake it", || rules(local).contains("3000").then_some(()));
}

#[test]
fn a_connection_from_the_shell_of_an_idle_runtime_wakes_it_and_passes_and_nothing_stays_in_the_path() {
    let (local, _fixture) = start("2s");
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    assert_eq!(rules(&local), "", "awake, nothing is in the path");
    local.wait_asleep("w");
    led(&local);
    let commands = || {
        let all = local.json(&["workspace", "commands", "w"])["commands"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|command| command["kind"] == "START_RUNTIME").count()
    };
    let before = commands();
    // Services and databases at once, on both loopback addresses: one wake.
    let script = "curl -sS -m 60 localhost:3000 > /tmp/1 & curl -sS -m 60 http://127.0.0.1:4100/ > /tmp/2 & \
                  curl -sS -m 60 'http://[::1]:3000/healthz' > /tmp/3 & redis-cli -h localhost ping > /tmp/4 & \
                  wait; cat /tmp/1; echo; cat /tmp/2; echo; cat /tmp/3; echo; cat /tmp/4";
    let told = local.inside_ok("w", script);
    let lines: Vec<_> = told.lines().collect();
    assert!(lines[0].contains("\"branch\":\"w\""), "{told}");
    assert_eq!(lines[1..], ["api of w", "ok", "PONG"], "{told}");
    assert_eq!(commands(), before + 1);
    let awake = local.wait_healthy("w");
    assert_eq!(awake["activity"]["last_wake"]["reason"], "localhost", "{awake:#}");
    eventually("nothing is in the path", || rules(&local).is_empty().then_some(()));

    // A daemon that was killed while they were led leads them again.
    local.wait_asleep("w");
    led(&local);
    let old = local.kill("host");
    eventually("another daemon", || (!lives(old) && local.run(&["ls"]).status.success()).then_some(()));
    eventually("they pass again", || {
        let out = local.inside("w", "curl -sS -m 60 localhost:3000");
        String::from_utf8_lossy(&out.stdout).contains("\"branch\":\"w\"").then_some(())
    });

    // Asked to sleep, it is left alone.
    local.ok(&["sleep", "w", "--wait"]);
    eventually("nothing is led", || (!rules(&local).contains("3000")).then_some(()));
    let refused = local.inside("w", "curl -sS -m 60 localhost:3000");
    assert_eq!(refused.status.code(), Some(7), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(local.status("w")["runtime"]["state"], "asleep");
}

#[test]
fn the_addresses_of_dev_hosts_work_inside_their_own_workspace_without_a_link_and_in_no_other() {
    let (local, _fixture) = start("11m");
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    local.ok(&["up", "other", "-c", "--no-attach"]);
    let services = local.status("w")["services"].clone();
    let url = |name: &str| {
        let all = services.as_array().expect("services");
        all.iter().find(|s| s["name"] == name).and_then(|s| s["url"].as_str()).expect("an address").to_owned()
    };
    let curl = |workspace: &str, url: &str| {
        let script = format!("curl -sS -m 60 -o /tmp/answer -w '%{{http_code}} ' '{url}'; cat /tmp/answer");
        local.inside_ok(workspace, &script)
    };
    let page = curl("w", &format!("{}/echo", url("web")));
    assert!(page.starts_with("200 ") && page.contains("\"x-envforge-user\":\"workspace:w\""), "{page}");
    assert_eq!(curl("w", &format!("{}/api/x", url("web"))), "200 api of w");
    // Node knows the names too, which no resolver would tell it.
    let script = format!("node -e \"fetch('{}/healthz').then(r => r.text()).then(console.log)\"", url("web"));
    assert_eq!(local.inside_ok("w", &script), "ok");
    // From another workspace the same address is nothing; a link opens it there as anywhere.
    let port = url("web").rsplit_once(':').expect("a port").1.to_owned();
    let there =
        format!("curl -sS -m 60 -o /dev/null -w '%{{http_code}}' --resolve '*:{port}:127.0.0.1' '{}/'", url("web"));
    eventually("served in the other one", || {
        let out = local.inside("other", &there);
        (String::from_utf8_lossy(&out.stdout) == "404").then_some(())
    });
    // A killed gateway or daemon is back by itself.
    for part in ["gateway", "host"] {
        local.kill(part);
        eventually("served again", || {
            let out = local.inside("w", &format!("curl -sS -m 60 '{}/healthz'", url("web")));
            (String::from_utf8_lossy(&out.stdout) == "ok").then_some(())
        });
    }
    // It wakes what sleeps, as every visitor who deserves it.
    local.ok(&["sleep", "w", "--wait"]);
    assert_eq!(curl("w", &format!("{}/healthz", url("web"))), "200 ok");
}
