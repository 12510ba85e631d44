//! No secret is anywhere but where it is meant to be: not in what is shown, logged, recorded or told to a process.

use data_encoding::BASE64;
use envforge_testkit::{
    fixture::{Fixture, WEB_JS, WEB_YML},
    local::Local,
    machine::eventually,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A piece of so many characters is no chance.
const PIECE: usize = 8;

/// What must not be shown, by name.
type Secrets = Vec<(String, String)>;

fn start() -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    (local, fixture)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

/// Every secret that an installation with one workspace has made.
fn secrets(local: &Local, workspace: &str) -> Secrets {
    let (home, state) = (local.home(), local.workspace_dir(workspace).join("state"));
    let values: Value = serde_json::from_str(&read(&state.join("resources.json"))).expect("JSON");
    let mut all = vec![
        ("the password of the database".to_owned(), text(&values["passwords"]["database"])),
        ("its superuser's".into(), read(&state.join("postgresql.password"))),
        ("the owner's token".into(), read(&home.join("control/owner.token"))),
        ("the host's token".into(), read(&home.join("control/host.token"))),
    ];
    for entry in fs::read_dir(home.join("templates")).expect("templates").flatten() {
        if entry.path().extension().is_some_and(|e| e == "password") {
            all.push(("the template's superuser's".into(), read(&entry.path())));
        }
    }
    for path in files_below(&local.dir().join("cache")) {
        let grant: Value = serde_json::from_str(&read(&path)).expect("JSON");
        all.push(("a capability".into(), text(&grant["grant"]["token"])));
    }
    assert!(all.len() >= 6 && all.iter().all(|(_, secret)| secret.len() > 20), "{} secrets", all.len());
    all
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let (mut left, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files
}

fn assert_none(secrets: &Secrets, place: &str, shown: &str) {
    for (name, secret) in secrets {
        assert!(!shown.contains(secret.as_str()), "{name} is in {place}: {}", shown.replace(secret.as_str(), "<HERE>"));
    }
}

/// That no piece of a text is in another one.
fn assert_no_piece(of: &str, place: &str, shown: &str) {
    for piece in of.as_bytes().windows(PIECE) {
        let piece = std::str::from_utf8(piece).expect("ASCII");
        assert!(!shown.contains(piece), "{piece} is in {place}: {shown}");
    }
}

#[test]
fn nothing_that_is_shown_logged_recorded_or_told_to_a_process_holds_a_secret() {
    let (local, fixture) = start();
    // A set-up step of the shell that prints what an earlier wake left, and a test and a run that fail with it.
    let nosy = WEB_YML
        .replace("['echo prepared >> prepared.txt']", "['echo prepared; cat ../.envforge/env/*.env || true']")
        .replace("tests:\n", "tests:\n  nosy: ['echo it is $DATABASE_URL; exit 3']\n");
    Fixture::commit(&fixture.web, "w", "envforge.yml", &nosy);
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    let file = local.workspace_dir("w").join("files/web/envforge.yml");
    fs::write(&file, nosy.replace("echo prepared;", "echo  prepared;")).expect("write");
    local.ok(&["restart", "w", "web"]);
    eventually("it is restarted", || {
        let all = local.json(&["workspace", "commands", "w"]);
        let restart = all["commands"].as_array()?.iter().find(|c| c["kind"] == "CONTROL_SERVICE")?.clone();
        restart["finished_at"].is_string().then_some(())
    });
    eventually("the step ran again", || local.ok(&["logs", "w", "setup"]).contains("DATABASE_URL").then_some(()));
    local.wait_healthy("w");
    local.curl("w", "http://localhost:3000/add?text=x");
    let secrets = secrets(&local, "w");

    let failed = [
        local.run(&["run", "w", "--service", "web", "test", "nosy"]),
        local.run(&["--json", "run", "w", "--service", "web", "test", "nosy"]),
        local.run(&["run", "w", "--service", "web", "--", "sh", "-c", "env; exit 4"]),
        local.run(&["run", "w", "--service", "nothing", "test"]),
    ];
    for out in &failed {
        assert!(!out.status.success());
        let said = [out.stdout.as_slice(), &out.stderr].concat();
        assert_none(&secrets, "the output or receipt of a run", &String::from_utf8_lossy(&said));
    }
    assert!(String::from_utf8_lossy(&failed[0].stdout).contains("***"), "it was printed, and masked");
    // A service that crashes shows its last lines.
    local.curl("w", "http://localhost:3000/exit");
    local
        .wait_for("w", "restarted", |s| s["services"].as_array().is_some_and(|a| a.iter().any(|s| s["restarts"] == 1)));
    local.wait_healthy("w");

    for args in [
        "status w",
        "--json status w",
        "ls",
        "--json ls",
        "why w",
        "--json why w",
        "why w web",
        "--json why w web",
        "logs w",
        "--json logs w",
        "workspace commands w",
        "--json workspace commands w",
        "--json workspace usage w",
        "audit",
        "--json audit",
        "env w --service web",
        "--json env w --service web",
        "project show",
        "local status",
        "--json local status",
        "--json whoami",
    ] {
        let out = local.run(&args.split(' ').collect::<Vec<_>>());
        assert_none(&secrets, args, &String::from_utf8_lossy(&[out.stdout, out.stderr].concat()));
        assert!(out.status.success(), "{args}");
    }
    assert_processes(&local, &secrets);
    local.ok(&["sleep", "w", "--wait"]);
    assert_files(&local, &secrets);
}

/// The arguments and environments of the installation's own processes.
fn assert_processes(local: &Local, secrets: &Secrets) {
    let parts = ["keeper", "control", "host", "postgres"].map(|part| local.part(part));
    for pid in parts.into_iter().chain(local.supervisors()) {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).expect("a living process");
            assert!(file == "environ" || !bytes.is_empty());
            assert_none(secrets, &format!("{file} of {pid}"), &String::from_utf8_lossy(&bytes));
        }
    }
    // Nobody else has them as an argument either.
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let bytes = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert_none(secrets, "the arguments of a process", &String::from_utf8_lossy(&bytes));
    }
}

/// Where each secret is on disk: in a file of its owner's alone, and in no other.
fn assert_files(local: &Local, secrets: &Secrets) {
    let meant = |path: &Path| {
        let text = path.to_string_lossy();
        let ends = ["/resources.json", "/runtime.json", "/postgresql.password", "/postgresql.prepared", ".password"];
        text.contains("/state/env/")
            || text.contains("/files/.envforge/env/")
            || ends.iter().any(|end| text.ends_with(end))
            || ["owner.token", "host.token"].iter().any(|name| text.ends_with(&format!("/control/{name}")))
    };
    // What the servers themselves keep is theirs.
    let servers =
        |path: &Path| path.components().any(|part| ["data", "postgres"].iter().any(|s| part.as_os_str() == *s));
    let (mut looked_at, mut found) = (0, 0);
    for path in files_below(&local.home()).into_iter().filter(|path| !servers(path)) {
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
        looked_at += 1;
        if meant(&path) {
            found += 1;
            assert_eq!(fs::metadata(&path).expect("there").mode() & 0o077, 0, "{}", path.display());
        } else {
            assert_none(secrets, &path.to_string_lossy(), &text);
        }
    }
    assert!(looked_at > 40 && found >= 8, "{looked_at} files, {found} with secrets");
    for name in ["context.json", "AGENTS.md"] {
        read(&local.workspace_dir("w").join("files/.envforge").join(name));
    }
    for path in files_below(&local.dir().join("cache")) {
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o077, 0, "{}", path.display());
    }
}

#[test]
fn an_env_file_holds_what_its_service_declared_and_is_its_users_alone() {
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    let dir = local.workspace_dir("w").join("files");
    let owner = fs::metadata(dir.join("web")).expect("checkout").uid();
    assert_ne!(owner, 0, "the workspace has a user of its own");
    for (service, declared) in [("web", "API_URL BRANCH CACHE_URL DATABASE_URL PORT"), ("api", "PORT SLUG")] {
        let path = dir.join(".envforge/env").join(format!("{service}.env"));
        let about = fs::metadata(&path).expect("there");
        assert_eq!((about.mode() & 0o7777, about.uid()), (0o600, owner), "{service}");
        let text = read(&path);
        let mut names: Vec<_> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        names.sort_unstable();
        assert_eq!(names.join(" "), declared);
    }
    // What reveals it is recorded, without it.
    let before = local.ok(&["audit"]);
    let shown = local.ok(&["env", "w", "--service", "web", "--reveal"]);
    let secrets = secrets(&local, "w");
    assert!(shown.contains(&secrets[0].1));
    let after = local.ok(&["audit"]);
    assert_ne!(before, after, "revealing is audited");
    assert_none(&secrets, "audit", &after);
    // From inside, nobody reads what is the host's.
    for file in ["control/owner.token", "control/host.token"] {
        let path = local.home().join(file);
        assert!(!local.run(&["exec", "w", "--", "cat", &path.to_string_lossy()]).status.success(), "{file}");
    }
}

#[test]
fn a_service_that_prints_its_own_password_is_masked_however_it_writes_it() {
    let (local, fixture) = start();
    let script = format!(
        r#"{WEB_JS}
const url = process.env.DATABASE_URL, password = new URL(url).password;
const begin = url.indexOf(password);
const b64 = Buffer.from(url).toString('base64'), safe = Buffer.from('x' + url).toString('base64url');
const say = (name, ...lines) => {{ console.log(name); for (const line of lines) console.log(line); }};
const cut = (text, at) => [text.slice(0, at), text.slice(at)];
say('plain', url, 'password=' + password);
for (const at of [8, 16, 24]) say('cut', ...cut(url, begin + at));
say('three', ...url.match(/.{{1,18}}/g));
say('base64', b64, safe, Buffer.from(password).toString('base64'));
say('base64 cut', ...cut(b64, 40), ...b64.match(/.{{1,32}}/g));
say('url', encodeURIComponent(url), ...cut(encodeURIComponent(url), encodeURIComponent(url).indexOf(password) + 12));
console.error('to the other stream', url);
console.log('all said');
"#
    );
    Fixture::commit(&fixture.web, "w", "web.js", &script);
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    eventually("it said all", || local.ok(&["logs", "w", "web"]).contains("all said").then_some(()));
    let password = secrets(&local, "w").swap_remove(0).1;
    let url = format!("postgres://app:{password}@localhost:5432/app");
    let logs = local.ok(&["logs", "w", "web"]);
    let raw: String = files_below(&local.workspace_dir("w").join("logs")).iter().map(|path| read(path)).collect();
    for (place, shown) in [("logs", &logs), ("the files of the logs", &raw)] {
        assert!(shown.matches("***").count() >= 20, "{shown}");
        assert_no_piece(&password, place, shown);
        for (before, all) in [("", url.as_str()), ("x", &url), ("", &password)] {
            // Of the encoded text, that which stands for the password alone.
            let begin = (before.len() + all.find(&password).expect("there")).div_ceil(3) * 4;
            let end = (before.len() + all.find(&password).expect("there") + password.len()) / 3 * 4;
            assert_no_piece(&BASE64.encode(format!("{before}{all}").as_bytes())[begin..end], place, shown);
        }
    }
    // What is no secret is still readable.
    assert!(logs.contains("postgres://app:***@localhost:5432/app") && logs.contains("all said"), "{logs}");
}
