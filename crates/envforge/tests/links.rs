//! Signed links on a real installation: who is let in, what wakes, what is forwarded, and how it ends.

use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    machine::{eventually, lives},
    visitor::{self, Answer, Socket},
};
use serde_json::Value;
use std::{
    io::BufReader,
    path::Path,
    sync::{Arc, Barrier},
    time::Duration,
};

fn start(branch: &str, after: &str) -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.sleeps_after(branch, after);
    fixture.apply(&local);
    (local, fixture)
}

fn share(local: &Local, more: &[&str]) -> Value {
    let mut args = vec!["share", "w"];
    args.extend(more);
    local.json(&args)
}

fn url(shared: &Value) -> &str {
    shared["url"].as_str().expect("an address")
}

fn token(shared: &Value) -> &str {
    url(shared).rsplit_once('/').expect("a token").1
}

fn wakes(local: &Local) -> usize {
    let commands = local.json(&["workspace", "commands", "w"]);
    let all = commands["commands"].as_array().expect("commands");
    all.iter().filter(|command| command["kind"] == "START_RUNTIME").count()
}

/// What a refusal tells: everything but the time of day.
fn told(mut answer: Answer) -> Answer {
    answer.headers.retain(|(name, _)| name != "date");
    answer
}

const NAVIGATION: [(&str, &str); 3] =
    [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"), ("sec-fetch-site", "none")];
const BROWSER: (&str, &str) = ("user-agent", "Mozilla/5.0");

#[test]
fn a_link_leads_to_the_application_which_sees_neither_cookie_nor_link_and_until_it_is_revoked() {
    let (local, _fixture) = start("w", "11m");
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    let shared = share(&local, &["--service", "web"]);
    let (origin, cookie) = visitor::enter(url(&shared));
    assert!(origin.starts_with("http://web--w--local.dev.localhost:"), "{origin}");
    let visit = |path: &str| visitor::get(&format!("{origin}{path}"), &[("cookie", &cookie)]);
    assert_eq!(visit("/").json()["branch"], "w");
    assert_eq!(visit("/api/x").body, "api of w", "the project binds it to another service");

    // What the service sees.
    let with = [("cookie", &*format!("a=1; {cookie}; b=2")), ("x-envforge-user", "root"), ("origin", &*origin)];
    let seen = visitor::get(&format!("{origin}/echo?q=1"), &with).json();
    let headers = &seen["headers"];
    assert_eq!(seen["url"], "/echo?q=1");
    assert_eq!(headers["cookie"], "a=1; b=2");
    assert_eq!((&headers["host"], &headers["origin"]), (&"localhost:3000".into(), &"http://localhost:3000".into()));
    assert_eq!(headers["x-envforge-user"], format!("link:{}", shared["id"].as_str().expect("an id")));
    // What a visitor sees.
    let login = visit("/login");
    assert_eq!(login.header("location"), Some(&*format!("{origin}/echo")));
    assert_eq!(login.header("access-control-allow-origin"), Some(&*origin));
    let cookies: Vec<_> = login.headers.iter().filter(|(name, _)| name == "set-cookie").map(|(_, v)| v).collect();
    assert_eq!(cookies, ["app=1; Path=/"]);

    // A program sends the link itself, and the service does not see it.
    let by_header = visitor::get(&format!("{origin}/echo"), &[("x-envforge-link", token(&shared))]);
    assert!(by_header.status == 200 && !by_header.body.contains("x-envforge-link"), "{by_header:?}");

    // Keys may be changed at any time: what an older one signed holds.
    assert_eq!(local.json(&["keys", "rotate"])["keys"].as_array().map(Vec::len), Some(2));
    assert_eq!(visit("/").status, 200);

    // It can be opened again, each time by a code that leads in once and on its own host alone.
    let again = visitor::get(url(&shared), &[]);
    let way = again.header("location").expect("a way").to_owned();
    let elsewhere = way.replace("web--w--local", "api--w--local");
    assert_eq!(visitor::get(&elsewhere, &[]).status, 404);
    let (_, second) = visitor::enter_by(&way);
    assert_eq!(visitor::get(&way, &[]).status, 404, "used");
    assert_eq!(visitor::get(&way, &[("cookie", &second)]).status, 303, "whoever is in is let in");

    // Not on another service's host, not by another host's page.
    let other = origin.replace("web--", "api--");
    assert_eq!(visitor::get(&format!("{other}/"), &[("cookie", &cookie)]).status, 404);
    let cross = [("cookie", &*cookie), ("origin", &*other), ("sec-fetch-site", "same-site")];
    assert_eq!(visitor::request("POST", &format!("{origin}/add?text=x"), &cross).status, 404);
    assert_eq!(visit("/").json()["rows"], 0);

    // A narrow link carries what it says, in whatever spelling.
    let narrow = share(&local, &["--families", "web"]);
    let header = [("x-envforge-link", token(&narrow))];
    for (path, status) in [("/", 200), ("/x/../echo", 403), ("//echo", 403), ("/x%2f..%2fecho", 403), ("/%zz", 403)] {
        assert_eq!(visitor::get(&format!("{origin}{path}"), &header).status, status, "{path}");
    }
    let socket = [("x-envforge-link", token(&narrow)), ("origin", &*origin)];
    assert_eq!(Socket::open(&format!("{origin}/ws"), &socket).expect_err("no sockets").status, 403);

    // Sockets, from their own pages alone; the host daemon's end does not touch them, that of the link does.
    let from = |page: &str| Socket::open(&format!("{origin}/ws"), &[("cookie", &cookie), ("origin", page)]);
    assert_eq!(from(&other).expect_err("another page's").status, 404);
    let mut socket = from(&origin).expect("a socket");
    assert_eq!(socket.echo(b"hello").expect("said back"), b"hello");
    local.kill("host");
    assert_eq!(socket.echo(b"still").expect("said back"), b"still");
    let links = local.status("w")["links"].clone();
    assert_eq!(links.as_array().map(Vec::len), Some(2), "{links}");
    local.ok(&["revoke", shared["id"].as_str().expect("an id")]);
    socket.wait_closed(Duration::from_secs(20));
    assert_eq!(visit("/").status, 404);
    assert_eq!(visitor::get(url(&shared), &[]).status, 404);
    assert_eq!(visitor::get(&format!("{origin}/"), &header).status, 200, "the other link still holds");

    // Nothing of it is in the logs.
    let logs = local.log_tails();
    assert!(!logs.contains("v4.public") && !logs.contains(token(&shared)), "{logs}");
}

#[test]
fn nothing_unverified_wakes_or_tells_what_exists_and_a_hundred_visitors_at_once_cause_one_wake() {
    let (local, _fixture) = start("w", "11m");
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    let shared = share(&local, &[]);
    let (origin, cookie) = visitor::enter(url(&shared));
    local.ok(&["sleep", "w", "--wait"]);
    let before = wakes(&local);

    // Every wrong way in looks the same, for what exists and for what does not.
    let nowhere = told(visitor::get(&format!("{}/", origin.replace("--w--", "--nowhere--")), &[]));
    assert_eq!(nowhere.status, 404);
    let value = cookie.split_once('=').expect("a value").1;
    let mut wrong: Vec<String> = (0..value.len()).step_by(3).map(|at| flipped(value, at)).collect();
    wrong.extend([String::new(), token(&shared).to_owned(), "x".repeat(10_000), value[..value.len() - 1].to_owned()]);
    for wrong in &wrong {
        let headers = [("cookie", &*format!("envforge={wrong}")), NAVIGATION[0]];
        assert_eq!(told(visitor::get(&format!("{origin}/"), &headers)), nowhere, "{wrong}");
    }
    for at in (0..token(&shared).len()).step_by(3) {
        let wrong = flipped(token(&shared), at);
        assert_eq!(told(visitor::get(&format!("{origin}/"), &[("x-envforge-link", &wrong)])), nowhere, "{wrong}");
        let address = url(&shared).replace(token(&shared), &wrong);
        assert_eq!(told(visitor::get(&address, &[])), nowhere, "{wrong}");
    }
    // Nor does what is verified but deserves no wake.
    let root = format!("{origin}/");
    let verified = |more: &[(&str, &str)]| {
        let mut headers = vec![("cookie", &*cookie)];
        headers.extend(more);
        visitor::get(&root, &headers)
    };
    let _ = visitor::enter(url(&shared));
    for quiet in [
        &[BROWSER, NAVIGATION[0], NAVIGATION[2], ("sec-purpose", "prefetch")][..],
        &[("user-agent", "Slackbot-LinkExpanding 1.0")],
        &[BROWSER, ("sec-fetch-mode", "cors"), ("sec-fetch-site", "same-origin")],
    ] {
        assert_eq!(verified(quiet).status, 503, "{quiet:?}");
    }
    let asleep = local.status("w");
    assert_eq!((wakes(&local), &asleep["runtime"]["state"]), (before, &"asleep".into()));

    // Programs are held until it is there; people get a page that says how far it is.
    let gate = Arc::new(Barrier::new(100));
    let visitors: Vec<_> = (0..100)
        .map(|nth| {
            let (gate, root, cookie) = (Arc::clone(&gate), root.clone(), cookie.clone());
            std::thread::spawn(move || {
                let mut headers = vec![("cookie", &*cookie)];
                if nth % 2 == 0 {
                    headers.push(BROWSER);
                    headers.extend(NAVIGATION);
                }
                gate.wait();
                visitor::get(&root, &headers)
            })
        })
        .collect();
    for (nth, visitor) in visitors.into_iter().enumerate() {
        let answer = visitor.join().expect("a visitor");
        let app = answer.status == 200 && answer.json()["branch"] == "w";
        let page = answer.status == 503 && answer.header("retry-after").is_some() && answer.body.contains("waking");
        assert!(app || (nth % 2 == 0 && page), "{answer:?}");
    }
    assert_eq!(wakes(&local), before + 1);
    local.wait_healthy("w");
    let page = verified(&[&[BROWSER], &NAVIGATION[..]].concat());
    assert_eq!((page.status, &page.json()["branch"]), (200, &"w".into()));
    // The page of another run asks for calls of its own, and a poke is one.
    local.ok(&["sleep", "w", "--wait"]);
    let own = [("cookie", &*cookie), BROWSER, ("origin", &*origin), ("sec-fetch-site", "same-origin")];
    let poked = visitor::request("POST", &format!("{origin}/.envforge/wake"), &own);
    assert_eq!(poked.status, 204, "{poked:?}");
    assert_eq!(
        verified(&[BROWSER, ("sec-fetch-mode", "cors"), own[3]]).json()["branch"],
        "w",
        "held until it is there"
    );
    let state = visitor::get(&format!("{origin}/.envforge/state"), &own).json();
    assert_eq!((&state["ready"], &state["runtime"]), (&true.into(), &"awake".into()));
}

/// Another token that differs in one character.
fn flipped(token: &str, at: usize) -> String {
    let mut octets = token.as_bytes().to_vec();
    octets[at] = if octets[at] == b'A' { b'B' } else { b'A' };
    String::from_utf8(octets).expect("text")
}

#[test]
fn link_traffic_holds_a_runtime_awake_and_an_open_socket_does_not() {
    let (local, _fixture) = start("w", "7s");
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    let shared = share(&local, &[]);
    let (origin, cookie) = visitor::enter(url(&shared));
    let headers = [("cookie", &*cookie), ("origin", &*origin)];
    let mut socket = Socket::open(&format!("{origin}/ws"), &headers).expect("a socket");
    assert_eq!(socket.echo(b"open").expect("said back"), b"open");
    // Each request is far below the floor of CPU, and each is told of.
    let healthz = format!("{origin}/healthz");
    local.wait_for("w", "held by its link", |status| {
        assert_eq!(visitor::get(&healthz, &headers).status, 200);
        status["activity"]["holders"].to_string().contains("link traffic")
    });
    let asleep = local.wait_asleep("w");
    assert_eq!(asleep["runtime"]["reason"], "idle");
    socket.wait_closed(Duration::from_secs(20));
    // Another request wakes it: no connection of the run before is used for it.
    assert_eq!(visitor::get(&format!("{origin}/"), &headers).json()["branch"], "w");
    let why = local.ok(&["why", "w"]);
    assert!(why.contains("link"), "{why}");
}

#[test]
fn a_gateway_that_is_replaced_loses_no_request_that_was_begun_and_one_that_is_killed_comes_back() {
    let (local, _fixture) = start("w", "11m");
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    let shared = share(&local, &[]);
    let (origin, cookie) = visitor::enter(url(&shared));
    let slow = format!("{origin}/slow");
    let mut under_way = visitor::connect(&slow);
    visitor::ask(&mut under_way, "GET", &slow, &[("cookie", &cookie)]);
    let mut reader = BufReader::new(under_way);
    let old = local.part("gateway");
    // It is with the service by the time that another one has been answered.
    assert_eq!(visitor::get(&format!("{origin}/healthz"), &[("cookie", &cookie)]).status, 200);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), nix::sys::signal::Signal::SIGTERM).expect("signalled");
    // Whoever comes while there is none waits for the next one.
    let meanwhile = visitor::get(&format!("{origin}/"), &[("cookie", &cookie)]);
    assert_eq!(meanwhile.json()["branch"], "w");
    let answer = visitor::read_answer(&mut reader, false).expect("an answer");
    assert_eq!((answer.status, &*answer.body), (200, "slow but whole"));
    eventually("ended", || (!lives(old)).then_some(()));
    assert_eq!(visitor::get(&format!("{origin}/"), &[("cookie", &cookie)]).json()["branch"], "w");
    local.kill("gateway");
    assert_eq!(visitor::get(&format!("{origin}/"), &[("cookie", &cookie)]).json()["branch"], "w");
    // Another control plane, another port: the gateway finds it, and the link still holds.
    local.kill("control");
    assert_eq!(visitor::get(&format!("{origin}/"), &[("cookie", &cookie)]).json()["branch"], "w");
    local.ok(&["revoke", shared["id"].as_str().expect("an id")]);
    eventually("revoked", || (visitor::get(&format!("{origin}/"), &[("cookie", &cookie)]).status == 404).then_some(()));
}
