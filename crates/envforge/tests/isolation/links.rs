//! Links, pipes and names that a workspace puts into its own tree and root could follow when it copies, restores, empties
//! or removes: a user's in its files, and those of whoever took over a data service in its data.

use super::world::World;
use envforge_testkit::local::Local;
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

/// A file of root's in a directory where everyone may write.
struct Trap(PathBuf);

const SECRET: &str = "secret of the host";

impl Trap {
    fn set(local: &Local, name: &str) -> Self {
        let dir = local.dir().join(name);
        fs::create_dir(&dir).expect("mkdir");
        fs::write(dir.join("kept"), SECRET).expect("write");
        for (path, mode) in [(&dir, 0o777), (&dir.join("kept"), 0o600)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        }
        Self(dir)
    }

    fn is_untouched(&self, after: &str) {
        let names: Vec<_> = fs::read_dir(&self.0).expect("read").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["kept"], "after {after}");
        let about = |path: &Path| fs::metadata(path).map(|about| (about.uid(), about.mode() & 0o7777)).expect("there");
        assert_eq!((about(&self.0), about(&self.0.join("kept"))), ((0, 0o777), (0, 0o600)), "after {after}");
        assert_eq!(fs::read_to_string(self.0.join("kept")).expect("read"), SECRET, "after {after}");
    }
}

/// Files below these that hold a text.
fn holding(text: &str, at: &[PathBuf]) -> String {
    let out = Command::new("grep").args(["-rlaF", text]).args(at).output().expect("grep");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What of others, and of the host, must be nowhere in what was copied.
fn holds_its_own_alone(local: &Local, at: &[PathBuf], after: &str) {
    for text in [SECRET, "only of b", "root:x:0:0", "root:*:", "root:!:"] {
        assert_eq!(holding(text, at), "", "{text:?} after {after}");
    }
    let key = fs::read_to_string(local.home().join("control/host.token")).expect("a token");
    assert_eq!(holding(key.trim(), at), "", "the host's token after {after}");
}

#[test]
fn whatever_a_user_puts_into_its_files_is_copied_as_it_is_and_followed_by_nobody() {
    let Some(world) = World::get() else { return };
    let (local, trap) = (world.local(), Trap::set(world.local(), "trap-of-files"));
    world.open("l");
    let (own, b) = (local.workspace_dir("l"), local.workspace_dir("b"));
    let id = b.file_name().expect("an id").to_string_lossy().into_owned();
    let targets = [
        trap.0.join("kept"),
        trap.0.clone(),
        "/etc/shadow".into(),
        "/etc/passwd".into(),
        local.home().join("control"),
        b.join("files"),
        // As they are read from where the host has the link.
        "../../state".into(),
        "../../state/postgresql.password".into(),
        "../../../".into(),
        format!("../../../{id}/files/own").into(),
        "/proc/self/root".into(),
        format!("/run/envforge/{}", local.installation()).into(),
    ];
    let mut script = String::from(
        "cd /workspace && echo mine-alone > mine && mkdir out && cd out && mkfifo pipe && ln ../mine name && \
         python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'; \
         ! mknod device c 1 3 2>/dev/null && ! ln /etc/passwd passwd 2>/dev/null && ! ln /etc/shadow shadow 2>/dev/null",
    );
    for (number, target) in targets.iter().enumerate() {
        script.push_str(&format!(" && ln -s '{}' to-{number}", target.display()));
    }
    script
        .push_str(" && for at in /workspace/.envforge /workspace/.home /workspace/all /tmp; do cp -a to-* $at/; done");
    local.inside_ok("l", &script);
    let are_as_they_were = |at: &Path| {
        for (number, target) in targets.iter().enumerate() {
            assert_eq!(
                &fs::read_link(at.join(format!("out/to-{number}"))).expect("a link"),
                target,
                "{}",
                at.display()
            );
        }
        assert!(fs::symlink_metadata(at.join("out/pipe")).expect("there").file_type().is_fifo());
        assert_eq!(fs::read_to_string(at.join("out/name")).expect("there"), "mine-alone\n");
    };

    let snapshot = local.json(&["snapshot", "create", "l"])["snapshot"].as_str().expect("an id").to_owned();
    trap.is_untouched("a snapshot");
    let kept = local.home().join("snapshots").join(own.file_name().expect("an id")).join(&snapshot);
    local.ok(&["fork", "l", "lf"]);
    local.wait_healthy("lf");
    trap.is_untouched("a fork");
    let fork = local.workspace_dir("lf");
    let copies: Vec<PathBuf> = [&kept, &fork].iter().flat_map(|at| [at.join("files"), at.join("data")]).collect();
    for at in [&kept, &fork] {
        are_as_they_were(&at.join("files"));
    }
    holds_its_own_alone(local, &copies, "copies");
    assert_eq!(holding("mine-alone", &copies).lines().count(), 4, "what is its own is in both, by both names");

    // A seed is read inside: a link leads no further than its user gets.
    let manifest = "cd /workspace/all && cp envforge.yml /tmp/yml && \
                    sed -i 's/database: {/database: { seed: seed.sql,/' envforge.yml";
    local.inside_ok("l", manifest);
    let password = fs::read_to_string(own.join("state/postgresql.password")).expect("a password");
    for (seed, state) in [
        ("ln -s ../../../state/postgresql.password seed.sql", "blocked"),
        ("ln -s ../../state/postgresql.password seed.sql", "blocked"),
        ("echo 'create table seeded()' > seed.sql", "ready"),
    ] {
        local.inside_ok("l", &format!("cd /workspace/all && rm -f seed.sql && {seed}"));
        let _ = local.run(&["reset", "l", "database", "--yes"]);
        local.ok(&["restart", "l", "web"]);
        let status = local.wait_for("l", seed, |status| status["resources"][0]["state"] == state);
        let said = format!("{status}{}", local.ok(&["logs", "l", "setup"]));
        assert!(!said.contains(password.trim()), "{seed}: {said}");
        trap.is_untouched("a seed");
    }
    local.inside_ok("l", "cp /tmp/yml /workspace/all/envforge.yml");
    local.wait_healthy("l");

    for kind in ["cache", "storage", "mail", "database"] {
        local.ok(&["reset", "l", kind, "--yes"]);
        trap.is_untouched(&format!("a reset of {kind}"));
    }
    // What a person sends from inside is read as the person inside.
    assert!(!local.inside("l", "cd /workspace/out && envforge s3 put to-0 x").status.success());
    // What is fetched takes the place of a link.
    local.inside_ok(
        "l",
        "cd /workspace && envforge s3 put mine y && cd out && envforge s3 get y to-0 && ! test -L to-0",
    );
    assert_eq!(local.inside_ok("l", "envforge s3 get y -"), "mine-alone");
    trap.is_untouched("objects");

    local.ok(&["snapshot", "restore", "l", &snapshot, "--yes"]);
    local.wait_healthy("l");
    are_as_they_were(&own.join("files"));
    holds_its_own_alone(local, &[own.join("files"), own.join("data")], "a restore");
    trap.is_untouched("a restore");
    for workspace in ["lf", "l"] {
        local.ok(&["delete", workspace, "--yes", "--force"]);
        trap.is_untouched("a removal");
    }
    assert!(!own.exists() && !fork.exists() && !kept.exists());
    world.unharmed(&["a", "b"], "links in another one's files");
}

#[test]
fn whatever_a_data_service_that_was_taken_over_puts_into_its_data_is_followed_by_nobody() {
    let Some(world) = World::get() else { return };
    let (local, trap) = (world.local(), Trap::set(world.local(), "trap-of-data"));
    world.open("d");
    local.inside_ok(
        "d",
        "printf 'Subject: of d\\n\\n' | curl -s smtp://localhost:1025 --mail-from a@b.c --mail-rcpt a@b.c -T -",
    );
    // As the resource user, by the database's superuser.
    let act = |script: &str| {
        let quoted = script.replace('\'', "''");
        let sql = format!("copy (select 1) to program 'cd /run/envforge-data && {quoted}'");
        let (went, said) = world.as_superuser("d", "d", &sql);
        assert!(went, "{script}: {said}");
    };
    let b = local.workspace_dir("b").join("data");

    // The inbox that the host reads for whoever may.
    let inbox = || local.run(&["mail", "d", "--json"]);
    let shows = |text: &str, out: &std::process::Output| String::from_utf8_lossy(&out.stdout).contains(text);
    assert!(shows("of d", &inbox()));
    let theirs = b.join("mailpit");
    for (place, target) in [("mailpit/inbox.sock", theirs.join("inbox.sock")), ("mailpit", theirs)] {
        act(&format!("mv {place} {place}.own && ln -s {} {place}", target.display()));
        let read = inbox();
        assert!(!shows("of b", &read), "{place}: {read:?}");
        act(&format!("rm {place} && mv {place}.own {place}"));
        assert!(shows("of d", &inbox()));
    }

    // The cluster that a reset empties: the control plane's own is on this machine, and lets root in without a password.
    let control = format!("/run/envforge/{}/pg/.s.PGSQL.5432", local.installation());
    assert!(fs::metadata(&control).expect("it is what this test is about").file_type().is_socket());
    let socket = "postgresql-socket/.s.PGSQL.5432";
    for target in [control.into(), b.join(socket)] {
        let target: PathBuf = target;
        act(&format!("mv {socket} {socket}.own && ln -s {} {socket}", target.display()));
        let reset = local.run(&["reset", "d", "database", "--yes"]);
        assert!(!reset.status.success(), "{reset:?}");
        let out = Command::new("mv")
            .current_dir(local.workspace_dir("d").join("data"))
            .args([&format!("{socket}.own"), socket])
            .status();
        assert!(out.expect("mv").success());
        assert_eq!(local.status("b")["runtime"]["state"], "awake", "the control plane has its database");
    }
    local.ok(&["restart", "d", "web"]);
    local.wait_healthy("d");
    local.ok(&["reset", "d", "database", "--yes"]);
    local.wait_healthy("d");

    // What a fork reads and writes by name while the cluster serves. Inside, the links lead to what the cluster needs, in
    // its own /tmp; on the host the same path leads elsewhere.
    let data = local.workspace_dir("d").join("data/postgresql");
    for place in ["global/pg_control", "pg_wal"] {
        local.ok(&["sleep", "d", "--wait"]);
        let (inside, link) = (
            local.workspace_dir("d").join("tmp").join(trap.0.strip_prefix("/tmp").expect("in /tmp")),
            data.join(place),
        );
        fs::create_dir_all(&inside).expect("mkdir");
        for dir in inside.ancestors().take(2) {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("chmod");
        }
        let there = inside.join(if place == "pg_wal" { "wal" } else { "kept" });
        fs::rename(&link, &there).expect("moved");
        symlink(
            Path::new("/tmp").join(there.strip_prefix(local.workspace_dir("d").join("tmp")).expect("in it")),
            &link,
        )
        .expect("linked");
        let wal = trap.0.join("wal");
        if place == "pg_wal" {
            fs::create_dir(&wal).expect("mkdir");
            for number in 1..32 {
                fs::write(wal.join(format!("0000000100000000000000{number:02X}")), SECRET).expect("write");
            }
        }
        local.ok(&["wake", "d", "--wait"]);
        let fork = local.run(&["fork", "d", "dp"]);
        assert!(!fork.status.success(), "{fork:?}");
        let _ = local.run(&["delete", "dp", "--yes", "--force"]);
        assert_eq!(holding(SECRET, &[local.home().join("workspaces")]), "", "{place}");
        for entry in fs::read_dir(&wal).into_iter().flatten().flatten() {
            assert_eq!(entry.metadata().expect("there").uid(), 0, "{place}");
        }
        let _ = fs::remove_dir_all(&wal);
        trap.is_untouched(place);
        local.ok(&["sleep", "d", "--wait"]);
        fs::rename(&there, &link)
            .or_else(|_| fs::remove_file(&link).and_then(|()| fs::rename(&there, &link)))
            .expect("moved back");
        local.ok(&["wake", "d", "--wait"]);
    }
    local.ok(&["fork", "d", "df"]);
    local.wait_healthy("df");
    for workspace in ["df", "d"] {
        local.ok(&["delete", workspace, "--yes", "--force"]);
        trap.is_untouched("a removal");
    }
    world.unharmed(&["a", "b"], "links in another one's data");
}
