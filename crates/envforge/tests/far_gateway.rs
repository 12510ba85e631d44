//! A gateway on another machine than the host, and people on a third: all that leads to the host is what it dialled itself.

use envforge_testkit::{
    elsewhere::{self, Elsewhere},
    fixture::Fixture,
    forward::Forward,
    local::Local,
    storage::{self, Stored},
    visitor::{self, Socket},
};
use serde_json::Value;
use std::{path::Path, time::Duration};

fn start() -> Local {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.sleeps_after("w", "11m");
    fixture.apply(&local);
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    local
}

fn text<'a>(of: &'a Value, name: &str) -> &'a str {
    of[name].as_str().expect("text")
}

/// Starts the parts of the installation again, its host with gateways to dial.
fn dials(local: &Local, gateways: &str) {
    local.ok(&["local", "stop"]);
    let started = local.command(&["local", "start"]).env("ENVFORGE_GATEWAY", gateways).status().expect("it runs");
    assert!(started.success());
}

#[test]
fn visitors_of_a_gateway_elsewhere_reach_and_wake_a_workspace_through_its_hosts_tunnel() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let local = start();
    let (listener, address) = elsewhere::listener();
    dials(&local, &format!("http://{address}"));
    let elsewhere = Elsewhere::than(&local);
    let _gateway = elsewhere.gateway(listener);
    let shared = local.json(&["share", "w", "--service", "web"]);
    let token = text(&shared, "url").rsplit_once('/').expect("a token").1;
    let origin = format!("http://web--w--local.dev.localhost:{}", address.port());
    let visit = |path: &str| visitor::get(&format!("{origin}{path}"), &[("x-envforge-link", token)]);
    let is_shown = || {
        let answer = visit("/");
        assert!(answer.status == 200 && answer.json()["branch"] == "w", "{answer:?}");
    };
    is_shown();
    assert_eq!(visit("/api/x").body, "api of w", "the project binds it to another service");
    let open = || Socket::open(&format!("{origin}/ws"), &[("x-envforge-link", token), ("origin", &origin)]);
    let mut socket = open().expect("a socket");
    assert_eq!(socket.echo(b"hello").expect("said back"), b"hello");

    // What wakes is held until it is there.
    local.ok(&["sleep", "w", "--wait"]);
    is_shown();
    // A daemon that was killed dials again, and whoever comes meanwhile waits.
    local.kill("host");
    is_shown();

    let socket = open().expect("a socket");
    local.ok(&["revoke", text(&shared, "id")]);
    socket.wait_closed(Duration::from_secs(20));
    assert_eq!(visit("/").status, 404);
}

#[test]
fn a_signed_address_leads_to_its_object_through_the_hosts_tunnel() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_envforge"));
    let Some(stored) = Stored::start(binary, storage::seaweedfs(), &[]) else { return };
    let local = &stored.local;
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    let (listener, address) = elsewhere::listener();
    dials(local, &format!("http://{address}"));
    let elsewhere = Elsewhere::than(local);
    let _gateway = elsewhere.gateway(listener);
    local.wait_for("w", "ready again", |status| status["resources"][0]["state"] == "ready");
    let origin = format!("http://storage--w--local.dev.localhost:{}", address.port());
    let signed = stored.python(
        "w",
        &format!(
            "public = client(endpoint='{origin}')\ntell([sign('put_object', Key='a'), sign('get_object', Key='a')])"
        ),
    );
    let [put, get] = [0, 1].map(|n| signed[n].as_str().expect("an address"));
    let much = "octets ".repeat(100_000);
    assert_eq!(visitor::put(put, &much, &[]).status, 200);
    let answer = visitor::get(get, &[]);
    assert!(answer.status == 200 && answer.body == much, "{}", answer.status);
    // One digit of the signature is another.
    let last = if get.ends_with('0') { '1' } else { '0' };
    let wrong = format!("{}{last}", &get[..get.len() - 1]);
    assert_ne!(visitor::get(&wrong, &[]).status, 200);
    local.ok(&["sleep", "w", "--wait"]);
    assert_eq!(visitor::get(get, &[]).status, 503);
}

#[test]
fn people_on_another_machine_than_the_host_attach_and_run_commands_through_the_gateway() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let local = start();
    let shared = local.json(&["share", "w"]);
    let base = text(&shared, "url").split_once("/share/").expect("a base").0;
    dials(&local, base);
    let elsewhere = Elsewhere::than(&local);
    let run = |args: &[&str]| {
        let out = elsewhere.command(args).output().expect("it runs");
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned(), told)
    };
    envforge_testkit::machine::eventually("the host has dialled", || {
        (run(&["exec", "w", "--", "true"]).0 == Some(0)).then_some(())
    });
    let (code, out, told) = run(&["exec", "w", "--", "sh", "-c", "pwd; exit 7"]);
    assert_eq!((code, &*out), (Some(7), "/workspace\n"), "{told}");
    let (code, out, told) = run(&["env", "w", "--service", "web"]);
    assert!(code == Some(0) && out.contains("PORT=3000"), "{out}{told}");
    let (code, _, told) = run(&["logs", "w", "-n", "1"]);
    assert_eq!(code, Some(0), "{told}");
    let mut forward = Forward::start(elsewhere.command(&["port-forward", "w", "web", "--json"]));
    let answer = visitor::get(&format!("http://127.0.0.1:{}/", forward.port()), &[]);
    assert!(answer.status == 200 && answer.json()["branch"] == "w", "{answer:?}");
    assert_eq!(forward.interrupt(), Some(0));
    let mut terminal = elsewhere.terminal(&["up", "w"]);
    terminal.wait_for("$ ");
    terminal.type_in("echo it-is-$((40 + 2))\n");
    terminal.wait_for("it-is-42");
    assert_eq!(terminal.detach(), Some(0));
}
