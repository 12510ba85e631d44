//! A PostgreSQL and a Redis of someone else's: in a network of their own that workspaces reach as they reach the Internet,
//! and that no installation knows.

use crate::machine::eventually;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// A network with servers in it, gone when dropped.
#[derive(Debug)]
pub struct Outside {
    name: String,
    address: String,
    dir: tempfile::TempDir,
    postgres: Option<Child>,
    redis: Option<Child>,
}

/// The superuser of the PostgreSQL, and everyone's password on the Redis.
pub const PASSWORD: &str = "outside-0123456789-password";

fn sh(script: &str) -> bool {
    let status = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    status.expect("sh runs").success()
}

fn binaries() -> PathBuf {
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        installed.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists()).collect();
    found.sort();
    found.pop().expect("PostgreSQL")
}

impl Outside {
    /// A network that nobody else has, with this machine at its other end.
    ///
    /// # Panics
    /// When it cannot be made; only root can.
    #[must_use]
    pub fn start() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let pid = std::process::id();
        for _ in 0..200 {
            let number = (pid.wrapping_mul(31) + MADE.fetch_add(1, Ordering::Relaxed)) % (1 << 15);
            let (name, at) = (format!("efo{number}"), format!("198.{}.{}", 18 + (number >> 13), (number >> 5) & 255));
            let first = (number & 31) * 8;
            let (here, there) = (format!("{at}.{}", first + 1), format!("{at}.{}", first + 2));
            // The name is taken first: whoever has it has the addresses too.
            if !sh(&format!("ip netns add {name}")) {
                continue;
            }
            let made = sh(&format!(
                "set -e; ip link add {name}h type veth peer name {name}n netns {name}; ip addr add {here}/30 dev {name}h; \
                 ip link set {name}h up; ip -n {name} addr add {there}/30 dev {name}n; ip -n {name} link set {name}n up; \
                 ip -n {name} link set lo up; ip -n {name} route add default via {here} metric 100"
            ));
            assert!(made, "the network {name} cannot be made");
            return Self { name, address: there, dir, postgres: None, redis: None };
        }
        panic!("no network is free");
    }

    fn command(&self, user: Option<&str>, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        if let Some(user) = user {
            command.args(["runuser", "-u", user, "--"]);
        }
        command.arg(program).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Where the servers are.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The URL of a database for its superuser.
    #[must_use]
    pub fn postgres_url(&self, database: &str) -> String {
        format!("postgres://postgres:{PASSWORD}@{}:5432/{database}", self.address)
    }

    /// The URL of the Redis.
    #[must_use]
    pub fn redis_url(&self) -> String {
        format!("redis://default:{PASSWORD}@{}:6379/0", self.address)
    }

    /// Starts the PostgreSQL, made where there is none yet.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn start_postgres(&mut self) {
        let data = self.dir.path().join("postgres");
        if !data.exists() {
            let password = self.dir.path().join("password");
            fs::write(&password, PASSWORD).expect("written");
            fs::create_dir(&data).expect("made");
            assert!(sh(&format!("chown postgres {} {}", data.display(), password.display())));
            let arguments = format!(
                "--no-sync --auth-local=trust --auth-host=scram-sha-256 --username postgres --locale=C --encoding=UTF8 --pwfile {} -D {}",
                password.display(),
                data.display()
            );
            let made = self.command(Some("postgres"), &binaries().join("initdb")).args(arguments.split(' ')).status();
            assert!(made.expect("initdb runs").success());
            let rules = data.join("pg_hba.conf");
            let text = fs::read_to_string(&rules).expect("rules") + "host all all 0.0.0.0/0 scram-sha-256\n";
            fs::write(rules, text).expect("written");
        }
        let options = format!("-c listen_addresses={} -c fsync=off -k {}", self.address, data.display());
        let mut command = self.command(Some("postgres"), &binaries().join("postgres"));
        let log = self.dir.path().join("postgres.log");
        command.args(options.split(' ')).arg("-D").arg(&data).stderr(fs::File::create(&log).expect("a log"));
        let mut child = command.spawn().expect("it starts");
        eventually("the PostgreSQL outside answers", || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("it ended: {status}\n{}", fs::read_to_string(&log).unwrap_or_default());
            }
            self.sql("postgres", "select 1").map(drop)
        });
        self.postgres = Some(child);
    }

    /// Runs SQL as the superuser; `None` when that fails.
    #[must_use]
    pub fn sql(&self, database: &str, text: &str) -> Option<String> {
        let data = self.dir.path().join("postgres");
        let out = Command::new("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h"])
            .arg(data)
            .args(["-U", "postgres", "-d", database, "-c", text])
            .stderr(Stdio::null())
            .output()
            .expect("psql runs");
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// Kills the PostgreSQL as a loss of power would.
    ///
    /// # Panics
    /// When none runs.
    pub fn kill_postgres(&mut self) {
        let mut child = self.postgres.take().expect("it runs");
        self.end(&mut child, "postgres");
        // Their numbers may belong to others by now, for which the next one would take them.
        for lock in ["postmaster.pid", ".s.PGSQL.5432.lock"] {
            let _ = fs::remove_file(self.dir.path().join("postgres").join(lock));
        }
    }

    /// Starts the Redis.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_redis(&mut self) {
        let mut command = self.command(None, Path::new("redis-server"));
        command.args(["--bind", &self.address, "--requirepass", PASSWORD, "--save", "", "--dir"]).arg(self.dir.path());
        self.redis = Some(command.spawn().expect("it starts"));
    }

    /// Loses every packet from here on, or no longer.
    ///
    /// # Panics
    /// When that cannot be.
    pub fn cut(&self, cut: bool) {
        let rules = if cut {
            "add table inet cut; add chain inet cut in { type filter hook input priority 0; policy drop; }"
        } else {
            "delete table inet cut"
        };
        assert!(sh(&format!("ip netns exec {} nft '{rules}'", self.name)));
    }

    /// Ends a server with all its helpers, which have sessions of their own: nobody else has programs in this network.
    fn end(&self, child: &mut Child, program: &str) {
        let runs = || {
            let pids = Command::new("ip").args(["netns", "pids", &self.name]).output().expect("ip runs");
            let is_it = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == program);
            let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
            pids.split_whitespace().filter(is_it).map(str::to_owned).collect::<Vec<_>>()
        };
        let _ = child.kill();
        let _ = child.wait();
        eventually("nothing of the server is left", || {
            let left = runs();
            // Ended already is as good.
            for pid in &left {
                let _ = sh(&format!("kill -KILL {pid}"));
            }
            left.is_empty().then_some(())
        });
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let both = [(self.postgres.take(), "postgres"), (self.redis.take(), "redis-server")];
        for (child, program) in both {
            if let Some(mut child) = child {
                self.end(&mut child, program);
            }
        }
        let _ = sh(&format!("ip link del {}h; ip netns del {}", self.name, self.name));
    }
}
