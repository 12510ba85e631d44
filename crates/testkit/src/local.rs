//! A whole installation in a temporary home, driven through the command line as a user would.

use crate::disk::SmallDisk;
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

/// An installation that is stopped and removed when dropped.
#[derive(Debug)]
pub struct Local {
    /// Unmounted before the directory that it lies in is removed.
    disk: Option<SmallDisk>,
    dir: tempfile::TempDir,
    binary: PathBuf,
    boot_id: PathBuf,
    user: Option<User>,
    /// Further variables of every command line.
    with: Vec<(String, String)>,
}

/// An ordinary user of the machine.
#[derive(Debug, Clone)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The longest a test waits for anything. Not a performance claim: only what separates "slow" from "never".
pub const PATIENCE: Duration = Duration::from_secs(90);

/// `target`, whichever it is: this program is in a directory of it.
///
/// # Panics
/// When it is not.
#[must_use]
pub fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("this program");
    exe.ancestors().nth(3).expect("the target directory").to_owned()
}

/// Where `scripts/setup --test-deps` puts servers that Debian does not have.
fn tools() -> PathBuf {
    target().join("tools")
}

/// Says what is not tried: not every machine has each server.
#[expect(clippy::print_stderr, reason = "what is left out is told")]
pub fn left_out(what: &str) {
    eprintln!("LEFT OUT: {what}");
}

/// PATH as an installation has it: the servers of `tools` at its end.
pub(crate) fn path() -> OsString {
    let known = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::env::split_paths(&known).chain([tools()])).expect("a path")
}

/// A program that an installation of [`Local`] finds and its users may run; without it `what` is left out.
#[must_use]
pub fn program(name: &str, what: &str) -> Option<PathBuf> {
    let mode = |at: &Path| fs::metadata(at).map_or(0, |about| about.permissions().mode());
    let open = |at: &Path| at.ancestors().skip(1).all(|dir| mode(dir) & 0o001 != 0) && mode(at) & 0o001 != 0;
    let found = std::env::split_paths(&path()).map(|dir| dir.join(name)).find(|at| at.is_file() && open(at));
    if found.is_none() {
        left_out(&format!("{what}, without {name}"));
    }
    found
}

fn owned(with: &[(&str, &str)]) -> Vec<(String, String)> {
    with.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

impl Local {
    /// Starts an installation with the given binary.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(binary: &Path) -> Self {
        Self::start_as(binary, None)
    }

    /// The same as an ordinary user, with nothing of the caller's environment but PATH. The caller is root.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_as(binary: &Path, user: Option<User>) -> Self {
        let local = Self::unstarted(binary, user);
        local.begin();
        local
    }

    /// The same with further environment variables, for the installation and every command line.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_with(binary: &Path, with: &[(&str, &str)]) -> Self {
        let mut local = Self::unstarted(binary, None);
        local.with = owned(with);
        local.begin();
        local
    }

    fn unstarted(binary: &Path, user: Option<User>) -> Self {
        let dir = tempfile::Builder::new().prefix("ef").tempdir().expect("temp dir");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let boot_id = dir.path().join("boot_id");
        fs::write(&boot_id, "11111111-1111-4111-8111-111111111111\n").expect("write");
        let local = Self { disk: None, dir, binary: binary.to_owned(), boot_id, user, with: vec![] };
        if let Some(user) = &local.user {
            let give = |dir: &Path| std::os::unix::fs::chown(dir, Some(user.uid), Some(user.gid)).expect("chown");
            give(local.dir.path());
            for own in ["user", "run"] {
                let own = local.dir.path().join(own);
                fs::create_dir(&own).expect("make a directory");
                give(&own);
            }
        }
        local
    }

    /// The same with these directories of the home (all of it if none is named) on a file system of so many MiB, which
    /// [`Self::disk`] fills. `None` where the caller may not mount one.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_on_small_disk(binary: &Path, mib: u32, parts: &[&str]) -> Option<Self> {
        Self::start_on_disk(binary, parts, &[], |at| SmallDisk::mount(at, mib))
    }

    /// The same with the whole home on a file system of a kind (`xfs`, `btrfs`, `ext4`) and so many MiB, and with further
    /// environment variables.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_on_image(binary: &Path, kind: &str, mib: u64, with: &[(&str, &str)]) -> Option<Self> {
        Self::start_on_disk(binary, &[], with, |at| SmallDisk::image(at, kind, mib))
    }

    fn start_on_disk(
        binary: &Path,
        parts: &[&str],
        with: &[(&str, &str)],
        make: impl FnOnce(&Path) -> Option<SmallDisk>,
    ) -> Option<Self> {
        let mut local = Self::unstarted(binary, None);
        local.with = owned(with);
        let disk = make(&local.dir.path().join("disk"))?;
        let link = |name: &str, from: PathBuf| {
            let to = disk.at().join(name);
            fs::create_dir(&to).expect("make a directory");
            std::os::unix::fs::symlink(to, from).expect("link");
        };
        if parts.is_empty() {
            link("home", local.home());
        } else {
            fs::create_dir(local.home()).expect("make a directory");
            parts.iter().for_each(|part| link(part, local.home().join(part)));
        }
        local.disk = Some(disk);
        local.begin();
        Some(local)
    }

    /// The small file system it was started on.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn disk(&self) -> &SmallDisk {
        self.disk.as_ref().expect("started on a small disk")
    }

    fn begin(&self) {
        let out = self.run(&["local", "start"]);
        assert!(out.status.success(), "local start: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Directory for a test's own files; readable by every user.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `ENVFORGE_HOME`.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The file that stands for the kernel's boot id.
    #[must_use]
    pub fn boot_id_file(&self) -> &Path {
        &self.boot_id
    }

    /// A command line with this installation's environment.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid).current_dir(self.dir.path()).env_clear();
            command.env("HOME", self.dir.path().join("user")).env("XDG_RUNTIME_DIR", self.dir.path().join("run"));
        }
        command
            .args(args)
            .env_remove("ENVFORGE_SERVER")
            .env_remove("ENVFORGE_TOKEN")
            .env_remove("ENVFORGE_PROJECT")
            .env("ENVFORGE_HOME", self.home())
            .env("ENVFORGE_BOOT_ID_PATH", &self.boot_id)
            .env("XDG_CACHE_HOME", self.dir.path().join("cache"))
            // Many installations share a disk here, and tests fill small ones to the last octet.
            .env("ENVFORGE_DISK_RESERVE", "0")
            .env("PATH", path())
            .envs(self.with.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command line to its end.
    ///
    /// # Panics
    /// When the binary cannot be run.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("envforge runs")
    }

    /// Runs a command line that must succeed; its standard output.
    ///
    /// # Panics
    /// When it does not succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "envforge {args:?} ended with {:?}\nstdout: {stdout}\nstderr: {}\n{}",
            out.status.code(),
            String::from_utf8_lossy(&out.stderr),
            self.log_tails(),
        );
        stdout
    }

    /// Runs a command line with `--json` that must succeed.
    ///
    /// # Panics
    /// When it fails or prints something else than JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let mut with_json = vec!["--json"];
        with_json.extend(args);
        let text = self.ok(&with_json);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("envforge {args:?}: {error} in {text}"))
    }

    /// `status WS --json`.
    pub fn status(&self, workspace: &str) -> Value {
        self.json(&["status", workspace])
    }

    /// Follows `status -w` until `wanted` holds; returns that status.
    ///
    /// # Panics
    /// When it does not hold within [`PATIENCE`].
    pub fn wait_for(&self, workspace: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut child = KillOnDrop(
            self.command(&["--json", "status", workspace, "-w"])
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .expect("envforge runs"),
        );
        let stdout = child.0.stdout.take().expect("piped");
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut last = Value::Null;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match receive.recv_timeout(left) {
                Ok(line) => {
                    last = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
                    if wanted(&last) {
                        return last;
                    }
                }
                Err(_) => panic!("{workspace} never became {what}; last: {last:#}\n{}", self.log_tails()),
            }
        }
    }

    /// Waits until the runtime is awake and every service healthy.
    pub fn wait_healthy(&self, workspace: &str) -> Value {
        self.wait_for(workspace, "healthy", |status| {
            status["runtime"]["state"] == "awake"
                && status["services"]
                    .as_array()
                    .is_some_and(|all| !all.is_empty() && all.iter().all(|service| service["state"] == "healthy"))
        })
    }

    /// Waits until the runtime is asleep and its meter off.
    pub fn wait_asleep(&self, workspace: &str) -> Value {
        self.wait_for(workspace, "asleep", |status| {
            status["runtime"]["state"] == "asleep" && status["billing"]["state"] == "off"
        })
    }

    /// Runs a script of bash in the workspace's shell layer, to its end.
    #[must_use]
    pub fn inside(&self, workspace: &str, script: &str) -> Output {
        self.run(&["exec", workspace, "--", "bash", "-c", script])
    }

    /// Runs a script that must succeed in the workspace's shell layer; its standard output without the last line feed.
    pub fn inside_ok(&self, workspace: &str, script: &str) -> String {
        self.ok(&["exec", workspace, "--", "bash", "-c", script]).trim_end().to_owned()
    }

    /// The id that every machine-wide name of the installation carries.
    ///
    /// # Panics
    /// When the installation has none.
    #[must_use]
    pub fn installation(&self) -> String {
        let path = self.home().join("host").join("installation");
        fs::read_to_string(path).expect("the installation's id").trim().to_owned()
    }

    /// Where the host keeps a workspace.
    #[must_use]
    pub fn workspace_dir(&self, workspace: &str) -> PathBuf {
        let id = self.status(workspace)["id"].as_str().unwrap_or_default().to_owned();
        assert!(!id.is_empty(), "{workspace} has no id");
        self.home().join("workspaces").join(id)
    }

    /// `curl` inside the workspace's shell layer; the body.
    pub fn curl(&self, workspace: &str, url: &str) -> String {
        self.ok(&["exec", workspace, "--", "curl", "-sS", "-m", "10", url])
    }

    /// JSON of a `curl` inside.
    ///
    /// # Panics
    /// When the answer is no JSON.
    pub fn curl_json(&self, workspace: &str, url: &str) -> Value {
        let text = self.curl(workspace, url);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The last lines of every log of the installation, for a failing test's message.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let mut all = String::new();
        let Ok(entries) = fs::read_dir(self.home().join("logs")) else { return all };
        for entry in entries.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            all.push_str(&format!("--- {}\n", entry.path().display()));
            for line in &lines[lines.len().saturating_sub(25)..] {
                all.push_str(line);
                all.push('\n');
            }
        }
        all
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // A test that failed may have left it full.
        self.disk.iter().for_each(SmallDisk::free);
        let out = self.run(&["local", "reset", "--yes"]);
        if !out.status.success() && !std::thread::panicking() {
            panic!("local reset: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Already ended is as good as ended now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
