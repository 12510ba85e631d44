//! Secrets of an organization from `envforge secrets set` to the environment of the one service that declared them.

use data_encoding::BASE64;
use envforge_testkit::{
    fixture::{API_YML, Fixture, WEB_JS, WEB_YML},
    local::Local,
    machine::{eventually, sigkill},
};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

const VALUE: &str = "sk_live_Zx9+wQ/7 it's";
const NEWER: &str = "sk_live_newer_0123456789";
const TOKEN: &str = "npm_token_0123456789";

fn start(web_yml: &str, web_js: &str) -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    let files = [("envforge.yml", WEB_YML, web_yml), ("web.js", WEB_JS, web_js)];
    for (file, _, text) in files.into_iter().filter(|(_, there, text)| there != text) {
        Fixture::commit(&fixture.web, "w", file, text);
    }
    fixture.apply(&local);
    (local, fixture)
}

fn declaring(more: &str) -> String {
    WEB_YML.replace("  BRANCH:", &format!("  STRIPE_KEY: {{ from: secret.stripe_key }}\n{more}  BRANCH:"))
}

fn set(local: &Local, args: &[&str], value: &str) -> Output {
    let mut words = vec!["secrets", "set"];
    words.extend(args);
    let mut child = local
        .command(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("envforge runs");
    child.stdin.take().expect("piped").write_all(value.as_bytes()).expect("written");
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out
}

fn service<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["services"].as_array().and_then(|all| all.iter().find(|s| s["name"] == name)).unwrap_or(&Value::Null)
}

/// The environments of the processes of a service, as the kernel shows them.
fn environments(local: &Local, service: &str) -> Vec<String> {
    let pids = local.pids_in(&format!("w0/runtime/services/{service}"));
    pids.iter().map(|pid| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()).map(text).collect()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let (mut left, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                Ok(_) | Err(_) => {}
            }
        }
    }
    files
}

#[test]
fn a_secret_reaches_the_service_that_declared_it_and_is_masked_wherever_else_it_would_show() {
    let script = format!(
        "{WEB_JS}
const key = process.env.STRIPE_KEY, cut = key.length - 8;
for (const line of [key, 'b64 ' + Buffer.from('x' + key).toString('base64'), encodeURIComponent(key),
  new URLSearchParams({{ key }}).toString(), JSON.stringify({{ key }}), 'a ' + key.slice(0, cut), key.slice(cut) + ' z'])
  console.log(line);
console.error('all said', key);
"
    );
    let (local, _fixture) = start(&declaring("  PIN: { from: secret.pin }\n"), &script);
    local.ok(&["up", "w", "--no-attach"]);
    let blocked = local.wait_for("w", "blocked", |s| service(s, "web")["state"] == "unhealthy");
    let web = service(&blocked, "web");
    assert_eq!(web["reason"], "the secret stripe_key is not set");
    let hint = web["hint"].as_str().expect("a hint");
    assert!(hint.starts_with("`envforge secrets set stripe_key --project fixture`"), "{hint}");
    local.wait_for("w", "served otherwise", |s| service(s, "api")["state"] == "healthy");

    let said = set(&local, &["stripe_key"], &format!("{VALUE}\n"));
    let short = set(&local, &["pin", "--organization"], "1234");
    assert!(text(short.stderr).contains("cannot be masked"));
    local.ok(&["restart", "w", "web"]);
    local.wait_healthy("w");

    let declared = format!("STRIPE_KEY={VALUE}\0");
    let web = environments(&local, "web");
    assert!(web.iter().any(|e| e.contains(&declared) && e.contains("PIN=1234\0")), "{} processes", web.len());
    for other in ["api", "api.ticker"] {
        let all = environments(&local, other);
        assert!(!all.is_empty() && all.iter().all(|e| !e.contains(VALUE) && !e.contains("STRIPE_KEY")), "{other}");
    }
    let env = local.json(&["env", "w", "--service", "web"]);
    assert_eq!((&env["variables"]["STRIPE_KEY"], &env["variables"]["PIN"]), (&"***".into(), &"***".into()));
    let before = local.json(&["audit"])["entries"].as_array().map(Vec::len);
    let revealed = local.json(&["env", "w", "--service", "web", "--reveal"]);
    assert_eq!(revealed["variables"]["STRIPE_KEY"], VALUE);
    assert_ne!(local.json(&["audit"])["entries"].as_array().map(Vec::len), before, "revealing is audited");
    let dir = local.workspace_dir("w");
    let file = fs::read_to_string(dir.join("files/.envforge/env/web.env")).expect("the env file");
    assert!(file.contains("STRIPE_KEY='sk_live_Zx9+wQ/7 it'\\''s'"), "quoted for a shell");

    eventually("it said all", || local.ok(&["logs", "w", "web"]).contains("all said ***").then_some(()));
    let mut shown = vec![text(said.stdout), text(said.stderr)];
    for args in [
        "logs w",
        "--json logs w",
        "status w",
        "--json status w",
        "why w web",
        "--json why w web",
        "secrets ls",
        "--json secrets ls",
        "--json audit",
        "--json workspace commands w",
        "env w --service web",
        "run w --service web -- sh -c env",
        "--json run w --service web -- sh -c env",
    ] {
        let out = local.run(&args.split(' ').collect::<Vec<_>>());
        assert!(out.status.success(), "{args}");
        shown.push(text([out.stdout, out.stderr].concat()));
    }
    shown.extend(files_below(&dir.join("logs")).iter().map(|path| text(fs::read(path).expect("read"))));
    shown.extend(files_below(&local.home().join("logs")).iter().map(|path| text(fs::read(path).expect("read"))));
    let encoded = BASE64.encode(format!("x{VALUE}").as_bytes());
    for of in [VALUE, &encoded[4..encoded.len() - 4], "sk_live_Zx9%2B", "sk_live_Zx9+wQ", "wQ/7 it's", "wQ%2F7"] {
        for text in &shown {
            assert!(!text.contains(of), "{of} in {text}");
        }
    }
    let listed = local.ok(&["secrets", "ls"]);
    assert!(listed.contains("stripe_key") && listed.contains("fixture") && listed.contains("(all)"), "{listed}");

    // What it was is masked still where something may have it.
    set(&local, &["stripe_key"], NEWER);
    local.ok(&["restart", "w", "web"]);
    eventually("it has the newer one", || {
        environments(&local, "web").iter().any(|e| e.contains(&format!("STRIPE_KEY={NEWER}\0"))).then_some(())
    });
    local.wait_healthy("w");
    let script = format!("echo 'was {}, is' \"$STRIPE_KEY\"", VALUE.replace('\'', "'\\''"));
    let out = local.run(&["run", "w", "--service", "web", "--", "sh", "-c", &script]);
    assert!(text(out.stdout).contains("was ***, is ***"));

    // Asleep, it lies where it is meant to be and nowhere else.
    local.ok(&["sleep", "w", "--wait"]);
    let meant = |path: &Path| {
        let path = path.to_string_lossy();
        ["/state/env/", "/files/.envforge/env/"].iter().any(|part| path.contains(part))
            || ["/secrets.json", "/runtime.json"].iter().any(|end| path.ends_with(end))
    };
    let mut found = 0;
    for path in files_below(&local.home()) {
        let there = text(fs::read(&path).unwrap_or_default());
        if there.contains(NEWER) {
            found += 1;
            assert!(meant(&path), "{}", path.display());
            assert_eq!(fs::metadata(&path).expect("there").mode() & 0o077, 0, "{}", path.display());
        }
    }
    assert!(found >= 3, "{found} files");

    // Taken away, the next wake says so.
    local.ok(&["secrets", "rm", "stripe_key"]);
    local.ok(&["wake", "w"]);
    let blocked = local.wait_for("w", "blocked again", |s| service(s, "web")["state"] == "unhealthy");
    assert_eq!(service(&blocked, "web")["reason"], "the secret stripe_key is not set");
}

#[test]
fn a_set_up_step_of_the_shell_layer_gets_the_secrets_of_its_service_and_prints_none() {
    let yml = API_YML.replace("  SLUG:", "  NPM_TOKEN: { from: secret.npm_token }\n  SLUG:")
        + "setup:\n  install: { run: ['echo \"token is $NPM_TOKEN\"; printf %s \"$NPM_TOKEN\" > token'], layer: shell }\n";
    let (local, fixture) = start(WEB_YML, WEB_JS);
    Fixture::commit(&fixture.api, "w", "envforge.yml", &yml);
    set(&local, &["npm_token"], TOKEN);
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    assert_eq!(fs::read_to_string(local.workspace_dir("w").join("files/api/token")).expect("written"), TOKEN);
    let logs = local.ok(&["logs", "w", "setup"]);
    assert!(logs.contains("token is ***") && !logs.contains(TOKEN), "{logs}");
    assert!(environments(&local, "web").iter().all(|e| !e.contains(TOKEN)));
}

#[test]
fn with_the_control_plane_away_a_lost_supervisor_is_replaced_with_the_secrets_there_are() {
    let (local, _fixture) = start(&declaring(""), WEB_JS);
    set(&local, &["stripe_key"], VALUE);
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    let before = local.pids_in("w0/runtime/services/web");
    let control = local.part("control");
    signal(control, "STOP");
    sigkill(local.supervisor());
    let wanted = format!("STRIPE_KEY={VALUE}\0");
    let again = eventually("the service runs again", || {
        let pids = local.pids_in("w0/runtime/services/web");
        let has = environments(&local, "web").iter().any(|e| e.contains(&wanted));
        (has && !pids.iter().any(|pid| before.contains(pid))).then_some(pids)
    });
    signal(control, "CONT");
    local.wait_healthy("w");
    assert_eq!(local.pids_in("w0/runtime/services/web"), again, "it was not started twice");
    assert!(!local.ok(&["logs", "w"]).contains(VALUE));
}

fn signal(pid: i32, name: &str) {
    let status = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}
