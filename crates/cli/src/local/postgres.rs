//! The private PostgreSQL cluster of the control plane.
//!
//! It listens on a unix socket only, in a directory that its own user and root alone may enter; that directory is
//! the whole of its authentication. It is ended *whole* before it is started again: the children of a killed
//! postmaster would otherwise hold its shared memory and block a restart for seconds.

use super::{
    log,
    paths::Paths,
    prepare::Prepared,
    process::{Process, kill_all_working_in},
    program::broken,
    state::Named,
};
use envforge_api::problem::Problem;
use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::process::Command;

/// Superuser and database of the control plane.
const NAME: &str = "envforge";
/// Oldest major version that is supported.
pub(super) const OLDEST: u32 = 14;

/// The cluster and where it lies.
#[derive(Debug)]
pub(super) struct Postgres {
    pub(super) paths: Paths,
    pub(super) prepared: Prepared,
}

impl Postgres {
    fn socket_dir(&self) -> PathBuf {
        self.prepared.run.join("pg")
    }

    /// How the control plane reaches it.
    pub(super) fn url(&self) -> String {
        let dir = self.socket_dir().to_string_lossy().replace('%', "%25").replace(' ', "%20").replace('&', "%26");
        format!("postgres:///{NAME}?host={dir}&user={NAME}")
    }

    /// Makes the cluster if there is none and starts it.
    ///
    /// # Errors
    /// When no server is installed, its user cannot reach the home, or the disk refuses.
    pub(super) async fn start(&mut self) -> Result<Process, Problem> {
        self.sweep().await?;
        if self.prepared.postgres.is_some() {
            super::traverse::check(self.paths.home())?;
        }
        let programs = Installed::for_cluster(&self.paths.data())?;
        self.private_dir(&self.socket_dir()).map_err(|error| broken("make the socket directory", &error))?;
        if !self.paths.data().join("PG_VERSION").exists() {
            self.initialize(&programs).await?;
        }
        let mut command = self.command(&programs.bin.join("postgres"))?;
        command.arg("-D").arg(self.paths.data());
        let mut sockets = std::ffi::OsString::from("unix_socket_directories=");
        sockets.push(self.socket_dir());
        command.arg("-c").arg(sockets);
        for setting in ["listen_addresses=", "max_connections=50", "shared_buffers=32MB", "jit=off"] {
            command.args(["-c", setting]);
        }
        let process = Process::start(&mut command).map_err(|error| broken("start PostgreSQL", &error))?;
        if let Some(group) = &self.prepared.postgres_cgroup
            && let Err(error) = fs::write(group.join("cgroup.procs"), process.name().pid.to_string())
        {
            // It works without; only ending it whole then rests on its working directory alone.
            log::note(&format!("postgres could not be put into {}: {error}", group.display()));
        }
        Ok(process)
    }

    /// The postmaster writes its state into the eighth line of `postmaster.pid`, as `pg_ctl` reads it.
    pub(super) fn is_ready(&self, process: Named) -> bool {
        let Ok(text) = fs::read_to_string(self.paths.data().join("postmaster.pid")) else { return false };
        let mut lines = text.lines().map(str::trim);
        lines.next() == Some(process.pid.to_string().as_str())
            && lines.nth(3).is_some_and(|dir| Path::new(dir) == self.socket_dir())
            && lines.nth(2) == Some("ready")
    }

    /// Kills whatever is left of it and then removes the files by which it would think that it still runs.
    ///
    /// # Errors
    /// When something of it lives on.
    pub(super) async fn sweep(&self) -> Result<(), Problem> {
        if let Some(group) = &self.prepared.postgres_cgroup {
            // Kernels before 5.14 have no such file; what it would have killed is found below.
            let _ = fs::write(group.join("cgroup.kill"), "1");
        }
        kill_all_working_in(&self.paths.data()).await?;
        for stale in [
            self.paths.data().join("postmaster.pid"),
            self.socket_dir().join(".s.PGSQL.5432"),
            self.socket_dir().join(".s.PGSQL.5432.lock"),
        ] {
            match fs::remove_file(&stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(broken(&format!("remove {}", stale.display()), &error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Makes the cluster beside its place and moves it there when it is complete and on disk, so that a cut-off
    /// attempt leaves nothing that looks like a cluster.
    async fn initialize(&self, programs: &Installed) -> Result<(), Problem> {
        let failed = |error: &io::Error| broken("make the database of the control plane", error);
        let next = self.paths.postgres().join("data.next");
        fs::create_dir_all(self.paths.postgres()).map_err(|error| failed(&error))?;
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.paths.postgres(), open).map_err(|error| failed(&error))?;
        match fs::remove_dir_all(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&error)),
            Ok(()) | Err(_) => {}
        }
        self.private_dir(&next).map_err(|error| failed(&error))?;

        let mut initdb = self.command(&programs.bin.join("initdb"))?;
        initdb.arg("-D").arg(&next).args(["-U", NAME, "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"]);
        self.run(initdb, None).await?;
        let mut single = self.command(&programs.bin.join("postgres"))?;
        single.args(["--single", "-F", "-j", "-D"]).arg(&next).arg("postgres");
        self.run(single, Some(&format!("CREATE DATABASE {NAME};\n\n"))).await?;

        fs::File::open(&next)
            .and_then(|dir| rustix::fs::syncfs(&dir).map_err(Into::into))
            .and_then(|()| fs::rename(&next, self.paths.data()))
            .map_err(|error| failed(&error))
    }

    /// Runs a program of PostgreSQL to its end; what it says goes to the log.
    async fn run(&self, mut command: Command, input: Option<&str>) -> Result<(), Problem> {
        use tokio::io::AsyncWriteExt;
        let log = self.paths.log("postgres");
        let from = log::len(&log);
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let attempt = async {
            let mut child = command.kill_on_drop(true).spawn()?;
            if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
                pipe.write_all(input.as_bytes()).await?;
            }
            child.wait().await
        };
        match attempt.await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let line = log::last_line(&log, from);
                let hint = log::hint(&log, line.as_deref());
                let line = line.unwrap_or_default();
                let what = format!("the database of the control plane could not be made ({status}): {line}");
                Err(Problem::unavailable(what, hint))
            }
            Err(error) => Err(broken("run a program of PostgreSQL", &error)),
        }
    }

    fn command(&self, program: &Path) -> Result<Command, Problem> {
        let log = log::open(&self.paths.log("postgres")).map_err(|error| broken("open a log", &error))?;
        let second = log.try_clone().map_err(|error| broken("open a log", &error))?;
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C.UTF-8").current_dir("/");
        command.stdin(Stdio::null()).stdout(log).stderr(second).process_group(0);
        if let Some(account) = &self.prepared.postgres {
            command.uid(account.uid).gid(account.gid);
        }
        Ok(command)
    }

    /// A directory that only the cluster's user and root may enter.
    fn private_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        match &self.prepared.postgres {
            Some(account) if fs::metadata(dir)?.uid() != account.uid => {
                chown(dir, Some(account.uid), Some(account.gid))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Server programs of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    /// Directory of `postgres` and `initdb`.
    pub(super) bin: PathBuf,
    /// Major version.
    pub(super) major: u32,
}

impl Installed {
    /// All that this machine has, newest first.
    pub(super) fn all() -> Vec<Self> {
        let mut found: Vec<Self> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some((entry.path().join("bin"), entry.file_name().to_str()?.parse().ok()?)))
            .chain(super::doctor::which("postgres").and_then(|path| {
                let output = std::process::Command::new(&path).arg("--version").output().ok()?;
                Some((path.parent()?.to_owned(), major_of(&String::from_utf8_lossy(&output.stdout))?))
            }))
            .filter(|(bin, _)| bin.join("postgres").exists() && bin.join("initdb").exists())
            .map(|(bin, major)| Self { bin, major })
            .collect();
        found.sort_by_key(|one| std::cmp::Reverse(one.major));
        found
    }

    /// The one an existing cluster was made with, or the newest.
    fn for_cluster(data: &Path) -> Result<Self, Problem> {
        let made_with = fs::read_to_string(data.join("PG_VERSION")).ok().and_then(|text| text.trim().parse().ok());
        choose(Self::all(), made_with)
    }
}

fn choose(found: Vec<Installed>, made_with: Option<u32>) -> Result<Installed, Problem> {
    let wanted = |one: &Installed| made_with.map_or(one.major >= OLDEST, |major| one.major == major);
    found.into_iter().find(wanted).ok_or_else(|| match made_with {
        Some(major) => Problem::unavailable(
            format!("the database was made with PostgreSQL {major}, which is not installed any more"),
            format!("apt-get install postgresql-{major}"),
        ),
        None => Problem::unavailable(
            format!("no PostgreSQL server (version {OLDEST} or newer) is installed"),
            "apt-get install postgresql",
        ),
    })
}

fn major_of(version: &str) -> Option<u32> {
    version.split_ascii_whitespace().nth(2)?.split('.').next()?.trim_end_matches(char::is_alphabetic).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_cluster_keeps_its_major_version_and_a_new_one_takes_the_newest() {
        let all = |majors: &[u32]| -> Vec<Installed> {
            majors.iter().map(|major| Installed { bin: PathBuf::from("/b"), major: *major }).collect()
        };
        assert_eq!(choose(all(&[17, 15]), None).unwrap().major, 17);
        assert_eq!(choose(all(&[17, 15]), Some(15)).unwrap().major, 15);
        assert_eq!(choose(all(&[17]), Some(15)).unwrap_err().hint, "apt-get install postgresql-15");
        assert_eq!(choose(all(&[13]), None).unwrap_err().hint, "apt-get install postgresql");
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
    }
}
