//! The one way into a workspace: [`Entry::start`]. As root a copy of the caller goes in by itself ([`super::inside`]);
//! where more than system calls is needed, `envforge enter`, a small single-threaded re-exec, takes the same steps.
//!
//! Order: control groups, oom score, namespaces, terminal, groups and ids, working directory, signal mask and
//! dispositions, close every descriptor above 2, exec with exactly the environment it was started with.

use super::{
    Result, SystemError,
    accounts::Account,
    cgroup::Group,
    door::{self, Became},
    filter,
    inside::Inside,
    sandbox,
    sandbox::Sandbox,
    share,
    spawn::{self, Process, Start, Stream},
};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask},
    unistd::{Gid, Uid},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ffi::CString, fs, io, path::PathBuf, process::ExitCode, sync::OnceLock};

/// Who a process inside a workspace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum As {
    /// The workspace's user.
    User,
    /// The workspace's resource user.
    Resource,
}

/// One process to be started inside a workspace. Holds no secret: it travels in the process arguments of
/// `envforge enter` until exec replaces them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Namespace files.
    pub pins: Vec<PathBuf>,
    /// Group it joins.
    pub group: Group,
    /// Identity.
    pub account: Account,
    /// Working directory inside; falls back to `/workspace` when missing.
    pub directory: PathBuf,
    /// Written to the process's oom_score_adj (services: 500).
    pub oom_score_adj: i32,
    /// Make standard input the controlling terminal.
    pub terminal: bool,
    /// A directory of the host that this process and its children see read-only at [`sandbox::SOURCE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// It is made in its group of version 2 and need not move there.
    #[serde(default)]
    pub placed: bool,
    /// It can make no subvolumes of btrfs (see [`super::filter`]).
    #[serde(default)]
    pub no_subvolumes: bool,
}

/// Exit status when a process could not be put into its workspace (the convention of `env` and `chroot`).
pub const CANNOT_ENTER: u8 = 125;

impl Entry {
    /// An entry into `sandbox` as `who`, in `group`, at `directory` (inside).
    #[must_use]
    pub fn new(sandbox: &Sandbox, who: As, group: &Group, directory: impl Into<PathBuf>) -> Self {
        let account = match who {
            As::User => &sandbox.accounts.user,
            As::Resource => &sandbox.accounts.resource,
        };
        Self {
            pins: sandbox.pins.clone(),
            group: group.clone(),
            account: account.clone(),
            directory: directory.into(),
            oom_score_adj: 0,
            terminal: false,
            source: None,
            placed: false,
            no_subvolumes: share::is_btrfs(&sandbox.dir),
        }
    }

    /// Starts `argv` there, in its control group from its first moment, with exactly `env` (secrets may be in `env`,
    /// never in `argv`).
    ///
    /// # Errors
    /// When the machine has no room for a process.
    pub fn start<'a>(
        &self,
        argv: &[String],
        env: impl IntoIterator<Item = (&'a String, &'a String)>,
        streams: [Stream; 3],
        kill_on_drop: bool,
    ) -> Result<Process> {
        let mut path = "";
        let mut environment = Vec::new();
        for (name, value) in env {
            if name == "PATH" {
                path = value;
            }
            environment.push(format!("{name}={value}"));
        }
        let group = self.group.v2.as_deref().filter(|at| spawn::can_place(at));
        let program = argv.first().map(String::as_str).unwrap_or_default();
        let (argv, inside) = if self.takes_the_short_way() {
            (argv.to_vec(), Some(Inside::prepare(self, group.is_some(), program, path)?))
        } else {
            let entry = Self { placed: group.is_some(), ..self.clone() };
            let mut words = vec![own_binary()?.to_string_lossy().into_owned(), "enter".into(), "run".into()];
            words.extend([entry.describe()?, "--".into()]);
            words.extend_from_slice(argv);
            (words, None)
        };
        let process = spawn::start(Start { argv, environment, streams, group, kill_on_drop, inside })?;
        if group.is_none()
            && let Some(pid) = process.id()
        {
            // From here on the group is never empty while the process lives.
            self.group.join(pid);
        }
        Ok(process)
    }

    /// Whether a copy of this process can go in by itself. Doors and a source of one's own take more than system calls.
    fn takes_the_short_way(&self) -> bool {
        rustix::process::geteuid().is_root() && self.group.doors.is_none() && self.source.is_none()
    }

    fn describe(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|e| SystemError::new("describe an entry", io::Error::new(io::ErrorKind::InvalidData, e)))
    }
}

/// `envforge enter run <entry-json> -- argv…`, which becomes that program (or, for an ordinary user, ends as it ends),
/// `envforge enter make <plan-json>`, `envforge enter hold <plan-json>` and `envforge enter probe`. Called by the binary's thin main before any thread exists.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    let failed = match args.split_first() {
        Some((mode, rest)) if mode == "run" => match rest {
            [entry, dashes, argv @ ..] if dashes == "--" && !argv.is_empty() => run(entry, argv),
            _ => Err(usage()),
        },
        Some((mode, [plan])) if mode == "make" => return sandbox::make::main(plan),
        Some((mode, [plan])) if mode == "hold" => return sandbox::hold::main(plan),
        Some((mode, [])) if mode == "probe" => return sandbox::hold::probe(),
        Some(_) | None => Err(usage()),
    };
    match failed {
        Ok(code) => ExitCode::from(code),
        Err((code, error)) => {
            complain(&error);
            ExitCode::from(code)
        }
    }
}

/// Standard error is whatever the caller gave: the log of the service, the terminal of the person.
pub(crate) fn complain(error: &SystemError) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "envforge: {error}");
}

fn usage() -> (u8, SystemError) {
    let source = io::Error::new(io::ErrorKind::InvalidInput, "this command is for EnvForge itself");
    (2, SystemError::new("enter a workspace", source))
}

fn run(entry: &str, argv: &[String]) -> Result<u8, (u8, SystemError)> {
    let entry: Entry = serde_json::from_str(entry).map_err(|_| usage())?;
    let name = argv.first().cloned().unwrap_or_default();
    if let Some(doors) = &entry.group.doors {
        match door::open(&entry, doors).map_err(|e| (CANNOT_ENTER, e))? {
            Became::Outer(status) => return Ok(door::end_like(status)),
            Became::Command => {}
        }
    }
    enter(&entry).map_err(|e| (CANNOT_ENTER, e))?;
    let words: std::result::Result<Vec<CString>, _> = argv.iter().map(|word| CString::new(word.as_str())).collect();
    let words = words.map_err(|_| usage())?;
    let error = match nix::unistd::execvp(&words[0], &words) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // The statuses a shell gives: not found, not executable.
    let code = if error == nix::errno::Errno::ENOENT { 127 } else { 126 };
    Err((code, SystemError::new(format!("run {name}"), error.into())))
}

fn enter(entry: &Entry) -> Result<()> {
    let failed = |doing: &str, error: nix::errno::Errno| SystemError::new(doing, error.into());
    for file in entry.group.own_membership_files(entry.placed) {
        fs::write(&file, "0").map_err(|e| SystemError::new("join the workspace's control group", e))?;
    }
    if entry.oom_score_adj > 0 {
        // Refused on some machines (containers); the service is then only less likely to be chosen first.
        let _ = fs::write("/proc/self/oom_score_adj", entry.oom_score_adj.to_string());
    }
    // Behind a door the namespaces were entered already.
    let pins = if entry.group.doors.is_some() { &[] } else { entry.pins.as_slice() };
    let pins: Result<Vec<fs::File>> = pins
        .iter()
        .map(|pin| fs::File::open(pin).map_err(|e| SystemError::new("open the workspace's namespaces", e)))
        .collect();
    let pins = pins?;
    let source = entry.source.as_deref().map(sandbox::make::detached).transpose()?;
    for pin in pins {
        setns(&pin, CloneFlags::empty()).map_err(|e| failed("enter the workspace's namespaces", e))?;
    }
    if let Some(source) = source {
        sandbox::make::show_source(&source)?;
    }
    if entry.terminal {
        nix::unistd::setsid().map_err(|e| failed("lead a session", e))?;
        rustix::process::ioctl_tiocsctty(io::stdin()).map_err(|e| SystemError::new("take the terminal", e.into()))?;
    } else {
        // A group leader cannot lead a session; it then is one already.
        let _ = nix::unistd::setsid();
    }
    if rustix::process::geteuid().is_root() && entry.account.uid != 0 {
        let (uid, gid) = (Uid::from_raw(entry.account.uid), Gid::from_raw(entry.account.gid));
        own_keyring();
        nix::unistd::setgroups(&[gid]).map_err(|e| failed("set the groups", e))?;
        nix::unistd::setresgid(gid, gid, gid).map_err(|e| failed("set the group", e))?;
        nix::unistd::setresuid(uid, uid, uid).map_err(|e| failed("set the user", e))?;
    }
    // The machine's setuid and setgid programs have no power inside: `crontab` would have jobs run outside.
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed("give up new rights", e))?;
    if entry.no_subvolumes && filter::install() < 0 {
        return Err(SystemError::new("filter system calls", io::Error::last_os_error()));
    }
    if std::env::set_current_dir(&entry.directory).is_err() {
        std::env::set_current_dir(sandbox::WORKSPACE)
            .map_err(|e| SystemError::new("go to the workspace's directory", e))?;
    }
    if entry.group.doors.is_some() {
        door::drop_capabilities()?;
    }
    default_signals().map_err(|e| failed("reset the signals", e))?;
    close_descriptors();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Every workspace would inherit, and share, the key ring of the session that the daemon was started in.
fn own_keyring() {
    #[allow(unsafe_code)]
    // SAFETY: no name is given, so that nothing is read. Where keys are refused altogether none is shared.
    unsafe {
        nix::libc::syscall(nix::libc::SYS_keyctl, nix::libc::KEYCTL_JOIN_SESSION_KEYRING, 0_usize);
    }
}

/// The runtime of Rust ignores SIGPIPE and a daemon may block signals: a program expects neither.
pub(super) fn default_signals() -> nix::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            #[allow(unsafe_code)]
            // SAFETY: the default disposition runs no code of ours, and this process has one thread.
            unsafe {
                sigaction(signal, &default)?;
            }
        }
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

fn close_descriptors() {
    #[allow(unsafe_code)]
    // SAFETY: close_range is called with constants; no value in this process owns a descriptor that is used later.
    unsafe {
        nix::libc::syscall(nix::libc::SYS_close_range, 3_u32, u32::MAX, 0_u32);
    }
}

/// What a shell, step, service or server inside gets besides its own variables: HOME, USER, LOGNAME, SHELL, PATH,
/// LANG, TMPDIR, XDG_RUNTIME_DIR.
#[must_use]
pub fn base_environment(account: &Account) -> BTreeMap<String, String> {
    let pairs = [
        ("HOME", sandbox::HOME.to_owned()),
        ("USER", account.name.clone()),
        ("LOGNAME", account.name.clone()),
        ("SHELL", "/bin/bash".to_owned()),
        ("PATH", search_path()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TMPDIR", "/tmp".to_owned()),
        ("XDG_RUNTIME_DIR", format!("/run/user/{}", account.uid)),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Tools of the host that a shell should find although they are not in a standard directory.
const HOST_TOOLS: [&str; 8] = ["claude", "codex", "code", "nvim", "emacs", "hx", "node", "cargo"];

/// PATH inside: the workspace's own programs, the system's, and those directories of the host's PATH that hold an
/// agent, an editor or a language that any user may run.
fn search_path() -> String {
    static PATH: OnceLock<String> = OnceLock::new();
    let own = format!("{}/.local/bin", sandbox::HOME);
    let standard = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    PATH.get_or_init(|| {
        let mut all: Vec<String> = vec![own];
        all.extend(standard.iter().map(|s| (*s).to_owned()));
        let of_host = std::env::var_os("PATH").unwrap_or_default();
        for dir in std::env::split_paths(&of_host) {
            let text = dir.to_string_lossy().into_owned();
            if !all.contains(&text) && HOST_TOOLS.iter().any(|tool| dir.join(tool).exists()) && open_to_all(&dir) {
                all.push(text);
            }
        }
        all.push(sandbox::BIN.to_owned());
        all.join(":")
    })
    .clone()
}

/// Whether every user may pass through the directory and all of its parents.
#[must_use]
pub fn open_to_all(dir: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    dir.is_absolute() && dir.ancestors().all(|at| fs::metadata(at).is_ok_and(|m| m.permissions().mode() & 0o001 != 0))
}

static OWN: OnceLock<PathBuf> = OnceLock::new();

/// Has `binary` be started wherever this program would start itself: a test is no `envforge`. Said before anything is
/// started.
pub fn stand_in(binary: PathBuf) {
    let _ = OWN.set(binary);
}

/// Path of the running binary, for re-exec. An upgrade that replaces the file is followed: the new one is used.
///
/// # Errors
/// When `/proc` does not say.
pub fn own_binary() -> Result<PathBuf> {
    if let Some(known) = OWN.get() {
        return Ok(known.clone());
    }
    let found = std::env::current_exe().map_err(|e| SystemError::new("find the running program", e))?;
    Ok(OWN.get_or_init(|| found).clone())
}
