//! The short way into a workspace: what a fresh copy of this process does between `clone3` and its program.
//!
//! The same steps as `envforge enter` (see [`super::enter`]), without starting this large binary for them first: that
//! costs two to four milliseconds for each process, as much as the rest of its start. In a copy of a process with
//! threads only system calls are safe. Everything is therefore opened, looked up and written down before; the copy
//! allocates, locks and drops nothing. The C library's ways to change ids would wait for threads that the copy does not
//! have: those go to the kernel directly.

use super::{
    Result, SystemError,
    enter::{CANNOT_ENTER, Entry},
    filter,
};
use nix::libc;
use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::AsRawFd,
    ptr,
};

/// Everything the copy needs, ready for the kernel.
#[derive(Debug)]
pub(super) struct Inside {
    /// Files that `0` is written to.
    memberships: Vec<File>,
    oom_score_adj: Option<CString>,
    namespaces: Vec<File>,
    terminal: bool,
    uid: libc::uid_t,
    gid: libc::gid_t,
    no_subvolumes: bool,
    directory: CString,
    /// Where the program may be, in the order of PATH.
    programs: Vec<CString>,
    /// What it is called in a message.
    name: CString,
}

impl Inside {
    /// The way into `entry` for `program`, which is looked for in `path`. The caller is root; `placed` says that the
    /// copy is made in its group of version 2.
    ///
    /// # Errors
    /// When the workspace's namespaces or groups are not there.
    pub(super) fn prepare(entry: &Entry, placed: bool, program: &str, path: &str) -> Result<Self> {
        let text = |text: String| {
            CString::new(text).map_err(|e| SystemError::new("prepare the way into the workspace", e.into()))
        };
        let join = |at| File::options().write(true).open(at);
        let joined: io::Result<_> = entry.group.own_membership_files(placed).map(join).collect();
        let pins: io::Result<_> = entry.pins.iter().map(File::open).collect();
        let programs: Result<_> = if program.contains('/') {
            text(program.to_owned()).map(|only| vec![only])
        } else {
            path.split(':').filter(|dir| !dir.is_empty()).map(|dir| text(format!("{dir}/{program}"))).collect()
        };
        Ok(Self {
            memberships: joined.map_err(|e| SystemError::new("join the workspace's control group", e))?,
            oom_score_adj: (entry.oom_score_adj > 0).then(|| text(entry.oom_score_adj.to_string())).transpose()?,
            namespaces: pins.map_err(|e| SystemError::new("open the workspace's namespaces", e))?,
            terminal: entry.terminal,
            uid: entry.account.uid,
            gid: entry.account.gid,
            no_subvolumes: entry.no_subvolumes,
            directory: text(entry.directory.to_string_lossy().into_owned())?,
            programs: programs?,
            name: text(program.to_owned())?,
        })
    }

    /// Goes in and becomes the program. `argv` and `environment` end with a null pointer; `script` is `argv` with one
    /// more place in front, for a file that only a shell can run.
    ///
    /// # Safety
    /// To be called in a copy that has one thread, with its three streams in their places. The pointers are to strings
    /// of the copy's memory.
    #[allow(unsafe_code)]
    pub(super) unsafe fn become_program(
        &self,
        argv: &[*const libc::c_char],
        script: &mut [*const libc::c_char],
        environment: &[*const libc::c_char],
    ) -> ! {
        // SAFETY: system calls on memory and descriptors that are this copy's own; see the module.
        unsafe {
            self.enter();
            let mut seen = libc::ENOENT;
            for program in &self.programs {
                libc::execve(program.as_ptr(), argv.as_ptr(), environment.as_ptr());
                let mut error = errno();
                if error == libc::ENOEXEC {
                    // What `execvp` does with a script that does not say who runs it.
                    script[0] = c"/bin/sh".as_ptr();
                    script[1] = program.as_ptr();
                    libc::execve(script[0], script.as_ptr(), environment.as_ptr());
                    error = errno();
                }
                if !matches!(error, libc::ENOENT | libc::ENOTDIR) {
                    seen = error;
                }
            }
            say(c"envforge: cannot run ");
            say(&self.name);
            why(seen);
            // The statuses a shell gives: not found, not executable.
            libc::_exit(if seen == libc::ENOENT { 127 } else { 126 })
        }
    }

    /// The steps, in the order of [`super::enter`].
    ///
    /// # Safety
    /// As [`Self::become_program`].
    #[allow(unsafe_code)]
    unsafe fn enter(&self) {
        // SAFETY: as for the caller.
        unsafe {
            for group in &self.memberships {
                need(libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1), c"join the workspace's control group");
            }
            if let Some(adjustment) = &self.oom_score_adj {
                // Refused on some machines (containers); the process is then only less likely to be chosen first.
                let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                libc::write(file, adjustment.as_ptr().cast(), adjustment.count_bytes());
            }
            for namespace in &self.namespaces {
                let entered = libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), 0);
                need(entered as isize, c"enter the workspace's namespaces");
            }
            // Never a group leader: the copy was made a moment ago.
            need(libc::setsid() as isize, c"lead a session");
            if self.terminal {
                need(libc::ioctl(0, libc::TIOCSCTTY, 0) as isize, c"take the terminal");
            }
            if self.uid != 0 {
                let none = 0_usize;
                libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, none);
                let groups = libc::syscall(libc::SYS_setgroups, 1_usize, &raw const self.gid);
                need(groups as isize, c"set the groups");
                let gid = libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid);
                need(gid as isize, c"set the group");
                let uid = libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid);
                need(uid as isize, c"set the user");
            }
            need(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) as isize, c"give up new rights");
            if self.no_subvolumes {
                need(filter::install(), c"filter system calls");
            }
            if libc::chdir(self.directory.as_ptr()) != 0 {
                // As `envforge enter`: the directory may have been removed by the workspace's user.
                need(libc::chdir(WORKSPACE.as_ptr()) as isize, c"go to the workspace's directory");
            }
            let mut default: libc::sigaction = std::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            for signal in 1..=libc::SIGSYS {
                // Two of them cannot be changed, and are as wanted.
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32);
            libc::umask(0o022);
        }
    }
}

/// [`sandbox::WORKSPACE`] for the kernel.
const WORKSPACE: &CStr = c"/workspace";

#[allow(unsafe_code)]
fn errno() -> i32 {
    // SAFETY: a variable of this thread, which always exists.
    unsafe { *libc::__errno_location() }
}

/// Ends the copy with a message unless a system call did what it should.
fn need(done: isize, doing: &CStr) {
    if done < 0 {
        let error = errno();
        say(c"envforge: cannot ");
        say(doing);
        why(error);
        #[allow(unsafe_code)]
        // SAFETY: ends the copy without running anything else of ours.
        unsafe {
            libc::_exit(i32::from(CANNOT_ENTER))
        }
    }
}

/// Standard error is whatever the caller gave: the log of the service, the terminal of the person.
fn say(text: &CStr) {
    write_all(text.to_bytes());
}

fn write_all(bytes: &[u8]) {
    #[allow(unsafe_code)]
    // SAFETY: the bytes are readable. Nobody can be told of a message that cannot be written.
    unsafe {
        libc::write(2, bytes.as_ptr().cast(), bytes.len());
    }
}

/// The end of a message, in the words of [`io::Error`].
fn why(error: i32) {
    say(match error {
        libc::ENOENT => c": No such file or directory",
        libc::EACCES => c": Permission denied",
        libc::EPERM => c": Operation not permitted",
        libc::ENOEXEC => c": Exec format error",
        libc::EISDIR => c": Is a directory",
        libc::E2BIG => c": Argument list too long",
        libc::ENOMEM => c": Cannot allocate memory",
        _ => c": the kernel refuses",
    });
    say(c" (os error ");
    let mut digits = [b'0'; 10];
    let (mut at, mut left) = (digits.len(), error.unsigned_abs());
    while at > 0 && (left > 0 || at == digits.len()) {
        at -= 1;
        digits[at] = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
    }
    write_all(&digits[at..]);
    say(c")\n");
}

#[cfg(test)]
mod tests {
    use super::{super::sandbox, *};

    #[test]
    fn the_directory_to_fall_back_to_is_the_workspace() {
        assert_eq!(WORKSPACE.to_str(), Ok(sandbox::WORKSPACE));
    }
}
