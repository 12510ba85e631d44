//! Starts a process *in* its control group (`clone3` with `CLONE_INTO_CGROUP`).
//!
//! Moving a process into a group that it was not made in waits for a grace period of the kernel: 5 to 13 ms measured,
//! as much as everything else between a decision to start a program and its first instruction. It also leaves a moment
//! in which the group is empty although a process is on its way into it. Made in its group, it waits for nothing and
//! whoever kills the group meets it there. Where the kernel or a container forbids this, the process is made beside
//! the group and moves by itself.

use super::{Result, SystemError, inside::Inside};
use nix::libc;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::ExitStatusExt,
    },
    path::Path,
    process::ExitStatus,
    sync::OnceLock,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
};

/// What becomes of one standard stream.
#[derive(Debug)]
pub enum Stream {
    /// `/dev/null`.
    Null,
    /// A pipe whose other end the [`Process`] holds.
    Piped,
    /// This descriptor.
    Given(OwnedFd),
}

/// A program to be started: argument vector, whole environment, standard streams.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// The program and its arguments. Without [`Start::inside`] the first is an absolute path.
    pub argv: Vec<String>,
    /// `NAME=value`; nothing is inherited.
    pub environment: Vec<String>,
    /// Standard input, output and error.
    pub streams: [Stream; 3],
    /// Directory of the control group of version 2 to be made in.
    pub group: Option<&'a Path>,
    /// Kill it when its handle is dropped.
    pub kill_on_drop: bool,
    /// What the copy does before it becomes the program.
    pub inside: Option<Inside>,
}

/// A started process. Dropped before its end, it is still reaped.
#[derive(Debug)]
pub struct Process {
    /// What writes to its standard input, if that is piped.
    pub stdin: Option<pipe::Sender>,
    /// What it writes to standard output, if that is piped.
    pub stdout: Option<pipe::Receiver>,
    /// What it writes to standard error, if that is piped.
    pub stderr: Option<pipe::Receiver>,
    pid: Pid,
    handle: Option<AsyncFd<OwnedFd>>,
    ended: Option<ExitStatus>,
    kill_on_drop: bool,
}

/// Whether this process can make others in the group at `at`, tried once: its caller then need not have them move
/// there. Some kernels refuse, and some kill what is made in a group if our own group was ever killed.
#[must_use]
pub fn can_place(at: &Path) -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| File::open(at).and_then(|group| try_out(&group)).unwrap_or(false))
}

/// Makes a process in the group that ends at once, and looks at how it ended.
fn try_out(group: &File) -> io::Result<bool> {
    let Some((_, handle)) = make(Some(group))? else {
        #[allow(unsafe_code)]
        // SAFETY: ends the copy without running anything of ours.
        unsafe {
            libc::_exit(0)
        }
    };
    let ended = rustix::process::waitid(WaitId::PidFd(handle.as_fd()), WaitIdOptions::EXITED)?;
    Ok(ended.is_some_and(|ended| ended.exit_status() == Some(0)))
}

/// Starts a program.
///
/// # Errors
/// When the machine has no room for a process.
pub(super) fn start(start: Start<'_>) -> Result<Process> {
    let doing = |e: io::Error| SystemError::new("start a process", e);
    let group = start.group.map(File::open).transpose().map_err(doing)?;
    let text = |words: Vec<String>| -> io::Result<Vec<CString>> {
        words.into_iter().map(|word| CString::new(word).map_err(io::Error::from)).collect()
    };
    let (argv, environment) = (text(start.argv).map_err(doing)?, text(start.environment).map_err(doing)?);
    let pointers = |words: &[CString]| -> Vec<*const libc::c_char> {
        words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, variables) = (pointers(&argv), pointers(&environment));
    let mut script: Vec<_> = std::iter::once(std::ptr::null()).chain(arguments.iter().copied()).collect();
    let [input, output, error] = start.streams;
    let (input, stdin) = theirs(input, End::Reads).map_err(doing)?;
    let (output, stdout) = theirs(output, End::Writes).map_err(doing)?;
    let (error, stderr) = theirs(error, End::Writes).map_err(doing)?;
    let streams = [input.as_raw_fd(), output.as_raw_fd(), error.as_raw_fd()];
    let made = make(group.as_ref()).map_err(doing)?;
    let Some((pid, handle)) = made else {
        take_streams(streams);
        #[allow(unsafe_code)]
        // SAFETY: this is the copy; what the pointers lead to was made above and outlives the call, which does not return.
        unsafe {
            match &start.inside {
                Some(inside) => inside.become_program(&arguments, &mut script, &variables),
                None => become_program(&arguments, &variables),
            }
        }
    };
    let mut process = Process {
        stdin: None,
        stdout: None,
        stderr: None,
        pid,
        handle: None,
        ended: None,
        kill_on_drop: start.kill_on_drop,
    };
    process.handle = Some(super::watch(handle, Interest::READABLE).map_err(doing)?);
    process.stdin = stdin.map(pipe::Sender::from_owned_fd).transpose().map_err(doing)?;
    process.stdout = stdout.map(pipe::Receiver::from_owned_fd).transpose().map_err(doing)?;
    process.stderr = stderr.map(pipe::Receiver::from_owned_fd).transpose().map_err(doing)?;
    Ok(process)
}

/// Which end of a pipe is the child's.
enum End {
    Reads,
    Writes,
}

/// The child's end of a stream, above the three that it will take, and ours.
fn theirs(stream: Stream, end: End) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let (fd, ours) = match stream {
        Stream::Null => (OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?), None),
        Stream::Given(fd) => (fd, None),
        Stream::Piped => {
            let (reads, writes) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            match end {
                End::Reads => (reads, Some(writes)),
                End::Writes => (writes, Some(reads)),
            }
        }
    };
    Ok((if fd.as_raw_fd() > 2 { fd } else { rustix::io::fcntl_dupfd_cloexec(&fd, 3)? }, ours))
}

/// A copy of this process: its number and a descriptor of it here, `None` in the copy.
fn make(group: Option<&File>) -> io::Result<Option<(Pid, OwnedFd)>> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut handle: RawFd = -1;
    let flags = libc::CLONE_PIDFD as u64 | if group.is_some() { CLONE_INTO_CGROUP } else { 0 };
    #[allow(unsafe_code)]
    // SAFETY: the structure is plain data, of which zero is the meaning "nothing" in each field. Without CLONE_VM the
    // child has a copy of this memory and goes on here on a copy of this stack, as after fork.
    let pid = unsafe {
        let mut about: libc::clone_args = std::mem::zeroed();
        about.flags = flags;
        about.pidfd = &raw mut handle as u64;
        about.exit_signal = libc::SIGCHLD as u64;
        about.cgroup = group.map_or(0, |group| group.as_raw_fd() as u64);
        libc::syscall(libc::SYS_clone3, &raw mut about, size_of::<libc::clone_args>())
    };
    match pid {
        0 => Ok(None),
        1.. => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
            #[allow(unsafe_code)]
            // SAFETY: the kernel made this descriptor for us a moment ago.
            let handle = unsafe { OwnedFd::from_raw_fd(handle) };
            Ok(Some((pid, handle)))
        }
        _ => {
            let error = io::Error::last_os_error();
            // A container may hide `clone3` as a whole.
            if group.is_none() && error.raw_os_error() == Some(libc::ENOSYS) { fork() } else { Err(error) }
        }
    }
}

fn fork() -> io::Result<Option<(Pid, OwnedFd)>> {
    #[allow(unsafe_code)]
    // SAFETY: the child calls only what is allowed after a fork of a process with threads, see `become_program`.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(None),
        1.. => {
            let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
            let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
            Ok(Some((pid, handle)))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// In the copy: puts its streams in their places. Other threads are not here, whatever they held: nothing is allocated,
/// locked or dropped on this way.
fn take_streams(streams: [RawFd; 3]) {
    for (number, stream) in streams.into_iter().enumerate() {
        #[allow(unsafe_code)]
        // SAFETY: system calls on descriptors above 2.
        unsafe {
            if libc::dup2(stream, number as RawFd) < 0 {
                libc::_exit(i32::from(super::enter::CANNOT_ENTER));
            }
        }
    }
}

/// In the copy: becomes this program itself, by its absolute path.
///
/// # Safety
/// Both arrays end with a null pointer; the others are to strings.
#[allow(unsafe_code)]
unsafe fn become_program(argv: &[*const libc::c_char], environment: &[*const libc::c_char]) -> ! {
    const SORRY: &[u8] = b"envforge: cannot run itself\n";
    // SAFETY: system calls on memory of this copy, which ends either in another program or here.
    unsafe {
        libc::execve(argv[0], argv.as_ptr(), environment.as_ptr());
        libc::write(2, SORRY.as_ptr().cast(), SORRY.len());
        libc::_exit(i32::from(super::enter::CANNOT_ENTER))
    }
}

impl Process {
    /// Its number, until its end was seen.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.ended.is_none().then(|| self.pid.as_raw_nonzero().get().cast_unsigned())
    }

    /// Waits for its end. May be dropped and called again.
    ///
    /// # Errors
    /// Never in practice: the process is this one's child.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        let ended = match &self.handle {
            Some(handle) => reap(handle).await?,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        self.ended = Some(ended);
        Ok(ended)
    }
}

/// A process descriptor is readable when its process has ended.
async fn reap(handle: &AsyncFd<OwnedFd>) -> io::Result<ExitStatus> {
    loop {
        let mut ready = handle.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(handle.get_ref().as_fd()), options)? {
            None => ready.clear_ready(),
            // As `wait` encodes it: the low octet holds a signal, the next one a status.
            Some(status) => {
                let core = if status.dumped() { 0x80 } else { 0 };
                let raw = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => (code & 0xff) << 8,
                    (None, Some(signal)) => signal | core,
                    (None, None) => 0,
                };
                return Ok(ExitStatus::from_raw(raw));
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let (None, Some(handle)) = (self.ended, self.handle.take()) else { return };
        if self.kill_on_drop {
            // One that ended is as wanted; its number cannot have been given to another before it is reaped.
            let _ = rustix::process::pidfd_send_signal(handle.get_ref(), Signal::KILL);
        }
        // A program that is ending leaves its children to the machine's first process.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Ends with the process.
            runtime.spawn(async move { reap(&handle).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn shell(script: &str, streams: [Stream; 3], kill_on_drop: bool) -> Process {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).into();
        let environment = vec!["A=b c".to_owned()];
        let start = Start { argv, environment, streams, group: None, kill_on_drop, inside: None };
        super::start(start).expect("start")
    }

    #[tokio::test]
    async fn a_program_gets_its_arguments_environment_and_streams_and_its_status_is_read() {
        let mut process =
            shell("echo $A; echo err >&2; env | wc -l; exit 7", [Stream::Null, Stream::Piped, Stream::Piped], false);
        let (mut out, mut err) = (String::new(), String::new());
        process.stdout.take().expect("piped").read_to_string(&mut out).await.expect("read");
        process.stderr.take().expect("piped").read_to_string(&mut err).await.expect("read");
        assert!(out.starts_with("b c\n"), "{out}");
        assert_eq!(err, "err\n");
        assert_eq!(process.wait().await.expect("wait").code(), Some(7));
        assert_eq!(process.wait().await.expect("again").code(), Some(7));
        assert_eq!(process.id(), None);
        let mut process = shell("kill -KILL $$", [Stream::Null, Stream::Null, Stream::Null], false);
        assert_eq!(process.wait().await.expect("wait").signal(), Some(9));
    }

    #[tokio::test]
    async fn a_dropped_process_is_killed_where_that_was_asked_for_and_reaped() {
        let mut process = shell("echo there; exec cat", [Stream::Null, Stream::Piped, Stream::Null], true);
        // Its input is at its end, but the pipe is held open by what the shell left behind.
        let pid = process.id().expect("it runs");
        let handle = rustix::process::pidfd_open(
            Pid::from_raw(i32::try_from(pid).expect("number")).expect("number"),
            rustix::process::PidfdFlags::empty(),
        )
        .expect("descriptor");
        let watched = super::super::watch(handle, Interest::READABLE).expect("watch");
        drop(process.stdout.take());
        drop(process);
        let _ = watched.readable().await.expect("it ended");
    }
}
