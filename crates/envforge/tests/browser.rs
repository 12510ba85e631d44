//! Signed links in a real browser, with the frameworks that people use: see `tests/browser`.
//!
//! What a machine lacks (Chromium, Node, the frameworks) is said and left out; `scripts/setup --test-deps` gets it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what holds, and what was left out, is told")]

use envforge_testkit::{fixture, local::Local};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

const APPS: [(&str, &str); 4] =
    [("vite", "node_modules"), ("next", "node_modules"), ("express", "node_modules"), ("django", "site")];

fn browser_tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/browser")
}

/// Whether everything is there; says what is not.
fn is_complete() -> bool {
    let at = browser_tests();
    let chromium = std::env::var_os("CHROMIUM").map_or_else(|| PathBuf::from("/usr/bin/chromium"), PathBuf::from);
    let apps = APPS.iter().map(|(app, modules)| at.join("apps").join(app).join(modules));
    let missing: Vec<_> = [chromium, at.join("node_modules")].into_iter().chain(apps).filter(|p| !p.exists()).collect();
    if !missing.is_empty() {
        eprintln!("LEFT OUT: browser tests, without {missing:?}: scripts/setup --test-deps");
    }
    missing.is_empty()
}

/// Packages where workspaces see them: what they have of their own hides the machine's `/tmp`.
fn modules() -> tempfile::TempDir {
    let shared = tempfile::Builder::new().prefix("efb").tempdir_in("/srv").expect("a directory");
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    for (app, packages) in APPS {
        let from = browser_tests().join("apps").join(app).join(packages);
        let to = shared.path().join(app);
        fs::create_dir(&to).expect("make a directory");
        // Hard links where that is possible: nobody inside may write to them.
        fixture::bash(&format!("cp -dRl '{0}' '{1}' 2>/dev/null || cp -dR '{0}' '{1}'", from.display(), to.display()));
        fixture::bash(&format!("chmod -R a+rX '{}'", to.display()));
    }
    shared
}

fn run(base: &str, scenarios: &[&str]) {
    if !is_complete() {
        return;
    }
    let modules = modules();
    let local = Local::start_with(Path::new(env!("CARGO_BIN_EXE_envforge")), &[("ENVFORGE_BASE", base)]);
    let mut project = "project: browser\nservices:\n".to_owned();
    for (app, _) in APPS {
        let bare = local.dir().join(format!("{app}.git"));
        let (work, from) = (local.dir().join(app), browser_tests().join("apps").join(app));
        fixture::bash(&format!(
            "set -e; mkdir '{work}'; cd '{from}'; tar c --exclude=node_modules --exclude=site . | tar x -C '{work}'; \
             cd '{work}'; sed -i 's#@MODULES@#{modules}#' envforge.yml; printf 'node_modules\\npackages\\n.next\\n' > .gitignore; \
             git init -q -b main; git add -A; git commit -qm first; git clone -q --bare . '{bare}'",
            work = work.display(),
            from = from.display(),
            modules = modules.path().display(),
            bare = bare.display(),
        ));
        project.push_str(&format!("  {app}: {{ repo: {} }}\n", bare.display()));
    }
    let file = local.dir().join("browser.yml");
    fs::write(&file, project).expect("write the project file");
    local.ok(&["project", "apply", "-f", &file.to_string_lossy()]);
    let up = local.run(&["up", "w", "-c", "--no-attach", "--wait"]);
    let why = || APPS.map(|(app, _)| local.ok(&["why", "w", app])).concat();
    assert!(up.status.success(), "{}", why());
    let shots = std::env::var_os("ENVFORGE_SHOTS").map_or_else(|| local.dir().to_owned(), PathBuf::from);
    let environment = local.command(&[]);
    let mut node = Command::new("node");
    node.current_dir(browser_tests()).args(["run.mjs", "w"]).arg(shots).args(scenarios);
    node.envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let out = node.env("ENVFORGE", env!("CARGO_BIN_EXE_envforge")).output().expect("node runs");
    let told = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    print!("{told}");
    assert!(out.status.success(), "{told}\n{}", local.log_tails());
}

#[test]
fn frameworks_work_behind_links_of_the_machines_own_base() {
    run("dev.localhost", &[]);
}

#[test]
fn frameworks_work_behind_links_of_another_base() {
    run("dev.test", &["vite", "next", "django", "express", "pages"]);
}
