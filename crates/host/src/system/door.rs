//! The way in for an ordinary user: three processes where root needs one.
//!
//! The one that was started stays outside the workspace's process namespace, because entering such a namespace takes
//! effect for children only; it passes signals on and ends as the command ends. Inside is the *door*: it adopts what
//! the command leaves behind and stands until the last of it has ended (see [`super::doors`]). The command is the
//! door's child. When the outer one is killed, the door kills the command. The door itself is a child of the
//! workspace's init, by way of a fourth process that ends at once: a namespace of processes ends only when the last of
//! them was waited for, and whoever is the first process of the machine may not do that.

use super::{
    Result, SystemError,
    doors::{Doors, Register},
    enter::{self, Entry},
    title,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
        socket::{
            AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixCredentials, recvmsg, setsockopt,
            socketpair, sockopt::PassCred,
        },
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        linux::fs::MetadataExt,
    },
    path::PathBuf,
};

/// Signals that are passed on to the command.
const PASSED_ON: [Signal; 9] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGALRM,
];

/// The first word each way: the door is there; the command may begin.
const GO: u8 = 0;

/// How a command ended, as one process tells another: the status, and 256 + the signal.
const BY_SIGNAL: i32 = 256;

/// What a process needs so that programs it starts may enter the namespaces it is in an owner of.
pub(super) const TO_ENTER: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYS_CHROOT);

/// Which of the three the caller has become.
pub(super) enum Became {
    /// The command: everything that is left is to make it ready and exec.
    Command,
    /// The one that was started: the command ended like this.
    Outer(i32),
}

fn failed(doing: &'static str) -> impl Fn(Errno) -> SystemError {
    move |error| SystemError::new(doing, error.into())
}

/// Enters a workspace by its pins. Returns twice: as the command inside, and outside when that has ended.
pub(super) fn open(entry: &Entry, doors: &Doors) -> Result<Became> {
    let doing = failed("make a door");
    let register = Register::open(doors)?;
    // Whoever started this process signals its group, which must hold nothing but itself.
    let _ = nix::unistd::setsid();
    title::show("envforge door");
    join(&entry.pins)?;
    let kind = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    let (ours, theirs) = socketpair(AddressFamily::Unix, kind.0, None, kind.1).map_err(&doing)?;
    setsockopt(&ours, PassCred, &true).map_err(&doing)?;
    let signals = take_signals().map_err(&doing)?;
    match fork_now().map_err(&doing)? {
        ForkResult::Parent { child } => {
            drop(theirs);
            register.door(number_of(&ours)?)?;
            drop(register);
            // The door is orphaned now, to the workspace's own init: nothing is left to the machine's.
            kill(child, Signal::SIGKILL).and_then(|()| waitpid(child, None)).map_err(&doing)?;
            rustix::io::write(&ours, &[GO]).map_err(|e| SystemError::new("open the door", e.into()))?;
            leave_streams()?;
            drop_capabilities()?;
            Ok(Became::Outer(outside(&signals, &ours)))
        }
        ForkResult::Child => {
            drop((ours, register));
            match fork_now().map_err(&doing)? {
                ForkResult::Parent { .. } => loop {
                    nix::unistd::pause();
                },
                ForkResult::Child => behind(&signals, theirs),
            }
        }
    }
}

/// The door's number on the host, which only the kernel can tell: it sends it along with a word of the door.
fn number_of(line: &OwnedFd) -> Result<i32> {
    let doing = failed("make a door");
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut word = [0_u8; 1];
    let mut words = [io::IoSliceMut::new(&mut word)];
    let message = recvmsg::<()>(line.as_raw_fd(), &mut words, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = message.map_err(&doing)?;
    let mut said = message.cmsgs().map_err(&doing)?;
    said.find_map(|one| match one {
        ControlMessageOwned::ScmCredentials(who) => Some(who.pid()),
        _ => None,
    })
    .ok_or_else(|| doing(Errno::ESRCH))
}

/// The door, and the command behind it.
fn behind(signals: &SignalFd, line: OwnedFd) -> Result<Became> {
    prctl::set_child_subreaper(true).map_err(failed("make a door"))?;
    let mut word = [0_u8];
    let went = rustix::io::write(&line, &[GO]).and_then(|_| rustix::io::read(&line, &mut word));
    if !matches!(went, Ok(1)) {
        std::process::exit(i32::from(enter::CANNOT_ENTER));
    }
    match fork_now().map_err(failed("start a process in the workspace"))? {
        ForkResult::Parent { child } => {
            leave_streams()?;
            drop_capabilities()?;
            stand(child, signals, line)
        }
        ForkResult::Child => {
            // A command whose door was killed would belong to nobody.
            prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("stay behind the door"))?;
            Ok(Became::Command)
        }
    }
}

/// Enters namespaces, each by its file, in this order. The one of users is left out if it is the caller's already.
pub(super) fn join(pins: &[PathBuf]) -> Result<()> {
    let doing = "enter the workspace's namespaces";
    let io = |e: io::Error| SystemError::new(doing, e);
    let own = fs::metadata("/proc/self/ns/user").map_err(io)?.st_ino();
    let opened: io::Result<Vec<fs::File>> = pins.iter().map(fs::File::open).collect();
    for file in opened.map_err(io)? {
        if file.metadata().map_err(io)?.st_ino() != own {
            setns(&file, CloneFlags::empty()).map_err(failed(doing))?;
        }
    }
    Ok(())
}

/// Gives up every right over the namespaces: programs of the workspace have none.
pub(super) fn drop_capabilities() -> Result<()> {
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(|e| SystemError::new("give up rights", e.into()))
}

/// Hands rights over the namespaces that the caller is in to the programs it starts.
pub(super) fn hand_down(rights: CapabilitySet) -> Result<()> {
    let doing = |e: rustix::io::Errno| SystemError::new("hand rights down", e.into());
    let own = rustix::thread::capabilities(None).map_err(doing)?;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: rights, ..own }).map_err(doing)?;
    for right in rights.iter() {
        rustix::thread::configure_capability_in_ambient_set(right, true).map_err(doing)?;
    }
    Ok(())
}

pub(super) fn fork_now() -> nix::Result<ForkResult> {
    #[allow(unsafe_code)]
    // SAFETY: this program has one thread, so the child is as whole as its parent.
    unsafe {
        fork()
    }
}

/// From here on signals are read, not acted upon.
fn take_signals() -> nix::Result<SignalFd> {
    let mut set: SigSet = PASSED_ON.into_iter().collect();
    set.add(Signal::SIGCHLD);
    // Whoever started us may have left it ignored, and children would then be lost without a word.
    reset(Signal::SIGCHLD)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn reset(signal: Signal) -> nix::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    #[allow(unsafe_code)]
    // SAFETY: the default disposition runs no code of ours.
    unsafe { sigaction(signal, &default) }.map(drop)
}

/// The command's streams are its own: a reader must see their end when the command's are closed.
pub(super) fn leave_streams() -> Result<()> {
    let doing = |e: io::Error| SystemError::new("leave the command's streams to it", e);
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(doing)?;
    nix::unistd::dup2_stdin(&null).map_err(|e| doing(e.into()))?;
    nix::unistd::dup2_stdout(&null).map_err(|e| doing(e.into()))?;
    nix::unistd::dup2_stderr(&null).map_err(|e| doing(e.into()))
}

/// What happened while waiting.
enum Woken {
    Signal(Signal),
    /// The other side of the pair said something, or ended.
    Line,
}

fn wait(signals: &SignalFd, line: Option<&OwnedFd>) -> Woken {
    loop {
        if let Ok(Some(info)) = signals.read_signal()
            && let Ok(number) = i32::try_from(info.ssi_signo)
            && let Ok(signal) = Signal::try_from(number)
        {
            return Woken::Signal(signal);
        }
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(line.map(|line| PollFd::new(line.as_fd(), PollFlags::POLLIN)));
        let polled = poll(&mut fds, PollTimeout::NONE);
        if polled.is_ok() && fds.get(1).is_some_and(|fd| fd.any() == Some(true)) {
            return Woken::Line;
        }
    }
}

/// Passes signals on until the door says how the command ended.
fn outside(signals: &SignalFd, line: &OwnedFd) -> i32 {
    loop {
        match wait(signals, Some(line)) {
            Woken::Signal(Signal::SIGCHLD) => {}
            // A door that has just gone is told about below.
            Woken::Signal(signal) => say(line, &[signal as u8]),
            Woken::Line => {
                let mut status = [0_u8; 4];
                return match rustix::io::read(line, &mut status) {
                    Ok(4) => i32::from_ne_bytes(status),
                    // The door was killed, and the command with it.
                    Ok(_) | Err(_) => BY_SIGNAL + Signal::SIGKILL as i32,
                };
            }
        }
    }
}

/// The other side may be gone, and then needs no word.
fn say(line: &OwnedFd, word: &[u8]) {
    let _ = rustix::net::send(line, word, rustix::net::SendFlags::NOSIGNAL);
}

/// The door: reaps until nothing is left behind it.
fn stand(command: Pid, signals: &SignalFd, line: OwnedFd) -> ! {
    let mut line = Some(line);
    let mut lives = true;
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == command => {
                    lives = false;
                    tell(line.take(), code);
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                    lives = false;
                    tell(line.take(), BY_SIGNAL + signal as i32);
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                // No child is left, and nothing can become one any more.
                Err(_) => std::process::exit(0),
            }
        }
        match wait(signals, line.as_ref()) {
            Woken::Signal(signal) if lives && signal != Signal::SIGCHLD => pass(command, signal),
            Woken::Signal(_) => {}
            Woken::Line => {
                let mut word = [0_u8];
                let heard = line.as_ref().map(|line| rustix::io::read(line, &mut word));
                let signal = match heard {
                    Some(Ok(1)) => Signal::try_from(i32::from(word[0])).ok(),
                    // The outer process is gone: whoever killed it meant the command.
                    Some(Ok(_) | Err(_)) | None => {
                        line = None;
                        Some(Signal::SIGKILL)
                    }
                };
                if let Some(signal) = signal.filter(|_| lives) {
                    pass(command, signal);
                }
            }
        }
    }
}

fn tell(line: Option<OwnedFd>, status: i32) {
    if let Some(line) = line {
        say(&line, &status.to_ne_bytes());
    }
}

/// To the command's process group once it leads one, to itself before.
fn pass(command: Pid, signal: Signal) {
    if kill(Pid::from_raw(-command.as_raw()), signal).is_err() {
        let _ = kill(command, signal);
    }
}

/// Ends as the command ended.
pub(super) fn end_like(status: i32) -> u8 {
    if status < BY_SIGNAL {
        return u8::try_from(status).unwrap_or(u8::MAX);
    }
    let number = status - BY_SIGNAL;
    if let Ok(signal) = Signal::try_from(number) {
        // The command has dumped its memory if it was to; this process has nothing to tell.
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
        let _ = reset(signal);
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
        let _ = nix::sys::signal::raise(signal);
    }
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}
