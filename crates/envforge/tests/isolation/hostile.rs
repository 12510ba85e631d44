//! Repositories and users that mean harm: nothing of theirs runs or opens anything with more rights than a workspace
//! has, and a broken workspace says what is wrong and works once that is mended.

use super::{start, works};
use envforge_testkit::{fixture::bash, local::Local, machine::eventually};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// A directory of the host that nothing may be written to, with a program that would.
struct Trap(PathBuf);

impl Trap {
    fn set(local: &Local) -> Self {
        let dir = local.dir().join("trap");
        fs::create_dir(&dir).expect("mkdir");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("chmod");
        let program = local.dir().join("snap");
        // Inside it leaves its mark in the workspace's own /tmp, outside in the trap as well.
        let text = format!(
            "#!/bin/sh\necho \"$(id -u) $(readlink /proc/self/ns/net)\" >>/tmp/snapped\n\
             (id -u >>'{}/mark') 2>/dev/null\nexit 0\n",
            dir.display()
        );
        fs::write(&program, text).expect("write");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        Self(dir)
    }

    fn program(&self) -> String {
        self.0.with_file_name("snap").to_string_lossy().into_owned()
    }

    /// Puts the program into a workspace as `/tmp/snap`.
    fn carry_into(&self, local: &Local, workspace: &str) {
        let text = fs::read_to_string(self.program()).expect("read");
        local.inside_ok(workspace, &format!("cat >/tmp/snap <<'END'\n{text}END\nchmod 755 /tmp/snap"));
    }

    fn is_untouched(&self, after: &str) {
        let found: Vec<_> = fs::read_dir(&self.0).expect("read").flatten().map(|e| e.file_name()).collect();
        assert!(found.is_empty(), "after {after}: {found:?}");
    }
}

fn shell_is_ready(local: &Local, workspace: &str) {
    assert_eq!(local.status(workspace)["shell"]["state"], "ready");
}

/// Everything that a repository can carry, and everything that its own place can be configured with.
fn poison(bare: &Path, trap: &Trap) {
    let script = format!(
        r#"set -e
        work=$(mktemp -d) && cd "$work"
        git clone -q '{bare}' w && cd w && git checkout -q -b bad
        printf '* filter=snap diff=snap merge=snap\n' > .gitattributes
        printf '[submodule "s"]\n\tpath = s\n\turl = ext::{program}\n\tupdate = !{program}\n' > .gitmodules
        git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),s
        touch -- '--upload-pack=sh' '-c' ';id;'
        ln -sf /etc/shadow envforge.yml
        mkdir hooks && cp '{program}' hooks/post-checkout
        git add -A . && git commit -q -m bad && git push -q origin bad
        cd / && rm -rf "$work"
        git -C '{bare}' config core.fsmonitor '{program}'
        git -C '{bare}' config core.sshCommand '{program}'
        git -C '{bare}' config core.hooksPath '{bare}/hooks'
        git -C '{bare}' config core.pager '{program}'
        git -C '{bare}' config uploadpack.packObjectsHook '{program}'
        git -C '{bare}' config filter.snap.smudge '{program}'
        git -C '{bare}' config filter.snap.clean '{program}'
        for hook in post-checkout pre-commit reference-transaction pre-receive post-update; do
          mkdir -p '{bare}/hooks'; cp '{program}' '{bare}/hooks/'$hook
        done"#,
        bare = bare.display(),
        program = trap.program(),
    );
    bash(&script);
}

#[test]
fn a_hostile_repository_runs_nothing_and_its_workspace_says_what_is_wrong() {
    let (local, fixture) = start();
    let trap = Trap::set(&local);
    local.ok(&["up", "good", "-c", "--no-attach"]);
    let good = local.wait_healthy("good");
    poison(&fixture.web, &trap);
    local.ok(&["up", "bad", "--no-attach"]);
    shell_is_ready(&local, "bad");
    trap.is_untouched("cloning");
    works(&local, "bad", "test ! -e /tmp/snapped && test -e '/workspace/web/-c' && test ! -e /workspace/web/s/.git");

    let status = local.wait_for("bad", "judged", |status| {
        status["services"].as_array().is_some_and(|all| {
            all.iter().any(|s| s["name"] == "api" && s["state"] == "healthy")
                && all.iter().any(|s| s["name"] == "web" && s["reason"].is_string())
        })
    });
    let web = &status["services"].as_array().expect("services")[0];
    assert!(web["reason"].as_str().is_some_and(|r| r.contains("envforge.yml")), "{web:#}");
    assert!(web["hint"].as_str().is_some_and(|h| h.contains("symbolic link")), "{web:#}");
    assert!(!status.to_string().contains("root:"), "nothing of /etc/shadow is told");

    // Settings of the user's own repository run as its user, inside, when the host asks git about it.
    trap.carry_into(&local, "bad");
    local.inside_ok(
        "bad",
        "cd /workspace/web && for name in core.fsmonitor core.sshCommand filter.snap.clean core.pager; do \
         git config $name /tmp/snap; done; mkdir -p .git/hooks; cp /tmp/snap .git/hooks/post-index-change",
    );
    let refused = local.run(&["delete", "bad", "--yes"]);
    assert_ne!(refused.status.code(), Some(0));
    let own = local.inside_ok("bad", "echo $(id -u) $(readlink /proc/self/ns/net)");
    let marks = local.inside_ok("bad", "sort -u /tmp/snapped");
    assert_eq!(marks, own, "whatever ran ran as the workspace's user in its sandbox");
    trap.is_untouched("asking git about hostile settings");

    // Mended, it works, with the database that it asks for now.
    local.inside_ok("bad", "cd /workspace/web && rm -rf .git/hooks && git show origin/main:envforge.yml > /tmp/yml && mv /tmp/yml envforge.yml");
    local.ok(&["restart", "bad", "web"]);
    local.wait_healthy("bad");
    let after = local.status("good");
    assert_eq!(after["services"], good["services"], "a neighbour noticed nothing");
}

#[test]
fn a_clone_runs_in_its_sandbox_whatever_appears_in_a_repository_that_is_being_made() {
    let (local, _fixture) = start();
    let trap = Trap::set(&local);
    local.ok(&["up", "racer", "-c", "--no-attach"]);
    // Hooks and settings are put into the half-made repository as soon as it appears, again and again.
    trap.carry_into(&local, "racer");
    let racing = "cd /workspace; rm -rf web; cp /tmp/snap .snap; setsid bash -c 'while ! [ -e /tmp/stop ]; do \
                  [ -e .making-web/.git/config ] && mkdir -p .making-web/.git/hooks \
                  && ln -f .snap .making-web/.git/hooks/post-checkout; done 2>/dev/null' </dev/null >/dev/null 2>&1 &";
    local.inside_ok("racer", racing);
    for _ in 0..3 {
        local.ok(&["local", "stop"]);
        local.ok(&["local", "start"]);
        let _ = local.run(&["up", "racer", "--no-attach"]);
        trap.is_untouched("cloning under a race");
        local.inside_ok("racer", "rm -rf /workspace/web");
    }
    local.inside_ok("racer", "touch /tmp/stop");
    let own = local.inside_ok("racer", "echo $(id -u) $(readlink /proc/self/ns/net)");
    // Nobody can say who wins a race; whatever ran, ran here.
    let marks = local.inside_ok("racer", "sort -u /tmp/snapped 2>/dev/null; true");
    assert!(marks.is_empty() || marks == own, "{marks}, not {own}");
}

/// One thing that a user inside may do, what undoes it, and the words by which the product says what is wrong; without
/// words it is no harm.
struct Prank {
    breaks: &'static str,
    mends: &'static str,
    says: &'static str,
}

/// `TRAP` is a directory of the host; `$W` is a checkout.
const PRANKS: [Prank; 11] = [
    Prank { breaks: "mv .envforge away; ln -s TRAP .envforge", mends: "rm .envforge", says: "symbolic link" },
    Prank { breaks: "mv .envforge away; touch .envforge", mends: "rm .envforge", says: ".envforge" },
    Prank { breaks: "rm -rf .envforge", mends: "true", says: "" },
    Prank {
        breaks: "rm -rf .envforge/env; ln -s TRAP .envforge/env",
        mends: "rm .envforge/env",
        says: "symbolic link",
    },
    Prank {
        breaks: "rm -f .envforge/env/web.env .envforge/context.json; ln -s TRAP/web .envforge/env/web.env; ln -s TRAP/c .envforge/context.json",
        mends: "true",
        says: "",
    },
    Prank { breaks: "rm -rf .home; ln -s TRAP .home", mends: "rm .home; mkdir .home", says: "" },
    Prank { breaks: "mv web old; ln -s TRAP web", mends: "rm web; mv old web", says: "symbolic link" },
    Prank { breaks: "mv web old; ln -s /etc web", mends: "rm web; mv old web", says: "symbolic link" },
    Prank {
        breaks: "mv web/envforge.yml web/y; mkfifo web/envforge.yml",
        mends: "mv -f web/y web/envforge.yml",
        says: "no regular file",
    },
    Prank {
        breaks: "mv web/envforge.yml web/y; ln -s /etc/shadow web/envforge.yml",
        mends: "mv -f web/y web/envforge.yml",
        says: "symbolic link",
    },
    Prank {
        breaks: "cp web/envforge.yml web/y; head -c 10000000 /dev/zero | tr '\\0' '#' >> web/envforge.yml",
        mends: "mv -f web/y web/envforge.yml",
        says: "larger",
    },
];

#[test]
fn whatever_a_user_puts_in_the_place_of_files_root_follows_nothing_and_mending_is_enough() {
    let (local, _fixture) = start();
    let trap = Trap::set(&local);
    for branch in ["good", "bad"] {
        local.ok(&["up", branch, "-c", "--no-attach"]);
    }
    let good = local.wait_healthy("good");
    local.wait_healthy("bad");
    let etc = || fs::read_dir("/etc").expect("read").flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    let before: Vec<_> = etc();
    for prank in &PRANKS {
        let breaks = prank.breaks.replace("TRAP", &trap.0.to_string_lossy());
        local.ok(&["sleep", "bad", "--wait"]);
        local.inside_ok("bad", &format!("cd /workspace && rm -rf away && {breaks}"));
        let _ = local.run(&["up", "bad", "--no-attach"]);
        if prank.says.is_empty() {
            local.wait_healthy("bad");
        } else {
            let says = |stated: &serde_json::Value| {
                let text = format!("{} {}", stated["reason"], stated["hint"]);
                text.contains(prank.says) && stated["hint"].as_str().is_some_and(|hint| !hint.is_empty())
            };
            local.wait_for("bad", &breaks, |status| {
                says(&status["runtime"]) || status["services"].as_array().is_some_and(|all| all.iter().any(says))
            });
        }
        trap.is_untouched(&breaks);
        // A daemon that starts anew finds the same, and lets its user in to mend it.
        local.ok(&["local", "stop"]);
        local.ok(&["local", "start"]);
        local.inside_ok("bad", &format!("cd /workspace && {}", prank.mends));
        trap.is_untouched(&breaks);
        local.ok(&["sleep", "bad", "--wait"]);
        local.ok(&["up", "bad", "--no-attach"]);
        local.wait_healthy("bad");
    }
    let new: Vec<_> = etc().into_iter().filter(|name| !before.contains(name)).collect();
    assert!(
        !new.iter().any(|n| ["context.json", "AGENTS.md", "tmux.conf", "env", "web.env"].iter().any(|own| n == own)),
        "{new:?}"
    );
    // The port of the addresses may be another one: it was free for a moment while the installation was stopped.
    let seen = |mut status: serde_json::Value| {
        let services = status["services"].as_array_mut().expect("services");
        services.iter_mut().for_each(|service| service["url"] = serde_json::Value::Null);
        status["services"].take()
    };
    assert_eq!(seen(local.status("good")), seen(good), "a neighbour noticed nothing");
}

#[test]
fn a_branch_may_have_any_name_that_git_takes_and_none_is_read_as_something_else() {
    let (local, _fixture) = start();
    let trap = Trap::set(&local);
    for refused in [format!("--upload-pack={}", trap.program()), "-x".into(), "a..b".into(), "a b".into()] {
        let out = local.run(&["up", "new", "-c", "--no-attach", &format!("--branch={refused}")]);
        assert_eq!(out.status.code(), Some(2), "{refused}: {}", String::from_utf8_lossy(&out.stderr));
    }
    let odd = format!("q/ü'\"`{0}`$({0});{0}&|<>%s#!{{}},=+", trap.program());
    for (slug, branch) in [("odd", odd.as_str()), ("head", "HEAD2"), ("quoted", "'quoted'")] {
        local.ok(&["up", slug, "-c", "--no-attach", &format!("--branch={branch}")]);
        assert_eq!(local.status(slug)["branch"], branch);
        let seen = local.inside_ok(
            slug,
            "git -C /workspace/web symbolic-ref --short HEAD; git -C /workspace/api branch --show-current",
        );
        assert_eq!(seen, format!("{branch}\n{branch}"));
    }
    trap.is_untouched("odd names");
    local.wait_healthy("odd");
    assert_eq!(local.curl_json("odd", "http://localhost:3000/")["branch"], odd.as_str());
}

#[test]
fn whoever_listens_on_a_databases_port_first_learns_no_password_and_is_named() {
    let (local, _fixture) = start();
    local.ok(&["up", "one", "-c", "--no-attach", "--wait"]);
    local.ok(&["sleep", "one", "--wait"]);
    // Asks for a password in clear, as PostgreSQL may, and writes down what it is told.
    let server = "const fs = require('fs'); require('net').createServer((s) => { s.on('error', () => {}); \
                  s.on('data', (d) => { fs.appendFileSync('/workspace/heard.txt', d); \
                  s.write(Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 3])); }); }) \
                  .listen(5432, '127.0.0.1', () => fs.writeFileSync('/workspace/listens.txt', String(process.pid)))";
    local.inside_ok("one", &format!("setsid node -e \"{server}\" > /dev/null 2>&1 < /dev/null &"));
    eventually("it listens", || local.inside("one", "test -s /workspace/listens.txt").status.success().then_some(()));
    let _ = local.run(&["wake", "one"]);
    let blocked = local.wait_for("one", "without its database", |status| {
        let all = status["resources"].as_array().cloned().unwrap_or_default();
        all.iter().any(|resource| resource["kind"] == "database" && resource["state"] == "blocked")
    });
    let database = &blocked["resources"].as_array().expect("resources")[0];
    assert!(database["reason"].as_str().is_some_and(|reason| reason.contains("port 5432")), "{database}");
    let heard = local.inside("one", "cat /workspace/heard.txt 2>/dev/null | tr -d '\\0'");
    let heard = String::from_utf8_lossy(&heard.stdout).into_owned();
    assert!(!heard.contains("envforge") && !heard.contains('p'), "{heard:?}");
    // Gone, the database is there at the next wake.
    local.inside_ok("one", "kill $(cat /workspace/listens.txt)");
    local.ok(&["sleep", "one", "--wait"]);
    local.ok(&["wake", "one", "--wait"]);
}
