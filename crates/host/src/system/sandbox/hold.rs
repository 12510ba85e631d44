//! What holds a workspace's namespaces for an ordinary user: an init that has rights over nothing but them.
//!
//! User, process, mount, network, IPC and host name namespaces, in which the user keeps their own number (PostgreSQL
//! refuses to be root). `/workspace` cannot be made on the machine, so the root of the file system is made anew from
//! the machine's directories. The network has loopback and, where `pasta` of Debian's package passt is installed, a
//! way out through it; `pasta` lives in the same process namespace, outside the network namespace, and dies with it.

use super::{
    Result, SystemError,
    make::{self, Plan},
    network,
};
use crate::system::{door, enter, enter::open_to_all, title};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, pivot_root},
};
use rustix::thread::CapabilitySet;
use std::{
    ffi::CString,
    fs,
    io::{self, BufRead, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// What is answered when the host has written the holder down.
pub(super) const KEPT: &str = "kept";

/// What a person can do when the machine refuses namespaces.
pub(super) const HINT: &str = "the machine must let ordinary users make user namespaces: `envforge doctor` says what keeps them from it; or run EnvForge as root";

fn failed(doing: &'static str) -> impl Fn(nix::errno::Errno) -> SystemError {
    move |error| SystemError::new(doing, error.into())
}

/// `envforge enter hold <plan-json>`: says `made <pid> [<pid of pasta>]`, waits for `kept`, and ends; the init it made
/// lives on.
pub(crate) fn main(plan: &str) -> ExitCode {
    let held = serde_json::from_str::<Plan>(plan)
        .map_err(|e| SystemError::new("read the plan", io::Error::new(io::ErrorKind::InvalidData, e)))
        .and_then(|plan| begin(&plan));
    match held {
        Ok(made) => ExitCode::from(u8::from(!made)),
        Err(error) => {
            enter::complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// `envforge enter probe`: whether this machine lets the caller make what [`begin`] makes. Says on standard error what
/// it does not.
pub(crate) fn probe() -> ExitCode {
    let covered = || {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(failed("separate the mounts"))?;
        make::fresh("proc", "/proc", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "")
    };
    let tried = own_users().and_then(|()| separate()).and_then(|()| {
        match door::fork_now().map_err(failed("start an init"))? {
            ForkResult::Parent { child } => Ok(matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0)))),
            ForkResult::Child => match covered() {
                Ok(()) => std::process::exit(0),
                Err(error) => {
                    enter::complain(&error);
                    std::process::exit(1)
                }
            },
        }
    });
    match tried {
        Ok(possible) => ExitCode::from(u8::from(!possible)),
        Err(error) => {
            enter::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn separate() -> Result<()> {
    let most = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWPID;
    unshare(most).map_err(failed("unshare namespaces"))
}

/// False when the init could not be made, which it has told by itself.
fn begin(plan: &Plan) -> Result<bool> {
    let _ = nix::unistd::setsid();
    title::show("envforge init");
    own_users()?;
    separate()?;
    let (told, tell) = pipe()?;
    match door::fork_now().map_err(failed("start the workspace's init"))? {
        ForkResult::Parent { child } => {
            drop(tell);
            let mut egress = String::new();
            let mut lines = io::BufReader::new(fs::File::from(told));
            let read = lines.read_line(&mut egress).map_err(|e| SystemError::new("hear the workspace's init", e))?;
            if read == 0 {
                return Ok(false);
            }
            let mut out = io::stdout();
            writeln!(out, "{} {child} {}", make::MADE, egress.trim())
                .and_then(|()| out.flush())
                .map_err(|e| SystemError::new("answer the host", e))?;
            // The init reads the host's word itself, and is gone if there is none.
            let _ = lines.read_line(&mut egress);
            Ok(true)
        }
        ForkResult::Child => {
            drop(told);
            match init(plan, fs::File::from(tell)) {
                Ok(never) => match never {},
                Err(error) => {
                    enter::complain(&error);
                    std::process::exit(1)
                }
            }
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed("make a pipe"))
}

/// A user namespace in which the caller is who they are.
pub(in crate::system) fn own_users() -> Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| failed("make a user namespace")(e).with_hint(HINT))?;
    for (file, text) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))]
    {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|e| SystemError::new(format!("write the {file} of a user namespace"), e).with_hint(HINT))?;
    }
    Ok(())
}

fn init(plan: &Plan, mut tell: fs::File) -> Result<std::convert::Infallible> {
    let (wait, go) = pipe()?;
    // Before the network is separated: the way out leads from the machine's own.
    let egress = match egress_program() {
        Some(program) => start_egress(&program, wait)?,
        None => String::new(),
    };
    unshare(CloneFlags::CLONE_NEWNET).map_err(failed("unshare the network"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(failed("separate the mounts"))?;
    let trees = make::Trees::take(plan)?;
    new_root()?;
    make::mounts(plan, &trees)?;
    drop(trees);
    network::loopback_up()?;
    // Inside its own network a workspace may use every port, as on a machine of its own.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    nix::unistd::sethostname(plan.sandbox.hostname.as_str()).map_err(failed("set the host name"))?;
    // Nothing inside has rights over the namespaces, and `pasta` could not look at a process that has.
    door::drop_capabilities()?;
    writeln!(tell, "{egress}").map_err(|e| SystemError::new("tell that the workspace is made", e))?;
    let mut word = String::new();
    io::stdin().lock().read_line(&mut word).map_err(|e| SystemError::new("hear the host", e))?;
    if word.trim() != KEPT {
        return Err(SystemError::new("hear the host", io::Error::other("it went away")));
    }
    let _ = rustix::io::write(&go, b"g");
    drop((go, tell));
    door::leave_streams()?;
    reap()
}

/// For ever: whatever is left behind in the workspace ends up here.
fn reap() -> Result<std::convert::Infallible> {
    let doing = failed("wait for processes");
    let ended: SigSet = [Signal::SIGCHLD].into_iter().collect();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).map_err(&doing)?;
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
        ended.wait().map_err(&doing)?;
    }
}

/// A root directory of the workspace's own, with the machine's directories in it and a place for `/workspace`.
fn new_root() -> Result<()> {
    const AT: &str = "/tmp";
    // The machine's /proc stays, to be covered: the kernel gives a new one only to who could see the old one.
    const OWN: [&str; 3] = ["tmp", "run", "workspace"];
    let doing = |e: io::Error| SystemError::new("make a root directory", e);
    let mut trees: Vec<(PathBuf, OwnedFd)> = Vec::new();
    let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
    for entry in fs::read_dir("/").map_err(doing)?.flatten() {
        let (from, kind) = (entry.path(), entry.file_type().map_err(doing)?);
        if kind.is_symlink() {
            links.push((fs::read_link(&from).map_err(doing)?, entry.file_name().into()));
        } else if kind.is_dir() && !OWN.iter().any(|own| entry.file_name() == *own) {
            // A directory that cannot be taken (one of a broken network file system) is missing inside.
            if let Ok(tree) = make::whole(&from) {
                trees.push((entry.file_name().into(), tree));
            }
        }
    }
    make::fresh("tmpfs", AT, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755,size=1m")?;
    let root = Path::new(AT);
    for own in OWN {
        fs::create_dir(root.join(own)).map_err(doing)?;
    }
    for (to, name) in links {
        std::os::unix::fs::symlink(to, root.join(name)).map_err(doing)?;
    }
    for (name, tree) in trees {
        let at = root.join(name);
        fs::create_dir(&at).map_err(doing)?;
        make::place(&tree, &at)?;
    }
    std::env::set_current_dir(root).map_err(doing)?;
    pivot_root(".", ".").map_err(failed("enter the new root directory"))?;
    // The old root lies over the new one until here.
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("leave the old root directory"))?;
    std::env::set_current_dir("/").map_err(doing)
}

fn egress_program() -> Option<PathBuf> {
    let found = ["/usr/local/bin", "/usr/bin", "/bin"].iter().map(|dir| Path::new(dir).join("pasta"));
    let program = found.into_iter().find(|at| at.exists() && open_to_all(at.parent().unwrap_or(at)))?;
    // Without the device there is no way to carry packets; `doctor` says so.
    fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").ok().map(|_| program)
}

/// Starts what carries traffic out, to begin when everything else is made. Returns its number on the host.
fn start_egress(program: &Path, wait: OwnedFd) -> Result<String> {
    let (told, tell) = pipe()?;
    match door::fork_now().map_err(failed("start pasta"))? {
        ForkResult::Parent { .. } => {
            drop((tell, wait));
            let said = io::read_to_string(fs::File::from(told));
            said.map(|text| text.trim().to_owned()).map_err(|e| SystemError::new("start pasta", e))
        }
        ForkResult::Child => {
            drop(told);
            let code = match become_egress(program, &wait, tell) {
                Ok(never) => match never {},
                Err(_) => 1,
            };
            std::process::exit(code)
        }
    }
}

fn become_egress(program: &Path, wait: &OwnedFd, tell: OwnedFd) -> Result<std::convert::Infallible> {
    let doing = |e: io::Error| SystemError::new("start pasta", e);
    // This is still the machine's /proc, so the number is the machine's.
    let own = fs::read_link("/proc/self").map_err(doing)?;
    writeln!(fs::File::from(tell), "{}", own.display()).map_err(doing)?;
    door::leave_streams()?;
    let mut word = [0_u8];
    if !matches!(rustix::io::read(wait, &mut word), Ok(1)) {
        return Err(doing(io::Error::other("the workspace was not made")));
    }
    door::hand_down(CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::NET_BIND_SERVICE)?;
    // Nothing of the machine is reachable from inside by loopback or gateway, nothing inside from the machine.
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend("-f -q --config-net -t none -u none -T none -U none --no-map-gw".split(' ').map(str::to_owned));
    if fs::read_to_string("/etc/resolv.conf").is_ok_and(|text| text.contains(network::FORWARDED)) {
        words.extend(["--dns-forward".to_owned(), network::FORWARDED.to_owned()]);
    }
    words.extend("--netns-only --netns /proc/1/ns/net".split(' ').map(str::to_owned));
    // It takes a disposition that is not the default for a mistake.
    enter::default_signals().map_err(failed("start pasta"))?;
    let words: std::result::Result<Vec<CString>, _> = words.into_iter().map(CString::new).collect();
    let words = words.map_err(|e| doing(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
    nix::unistd::execv(&words[0], &words).map_err(failed("start pasta"))
}
