//! What the kernel refuses to every process of a workspace that lies on btrfs: subvolumes of its own. One would be no member of
//! the workspace's group, or one of another's, whose share it then uses up; and one that is read-only cannot be
//! removed. Nothing else is filtered.

use nix::libc::{self, sock_filter, sock_fprog};

/// Numbers of `ioctl`: of this architecture, and of others whose programs run on it.
#[cfg(target_arch = "x86_64")]
const IOCTL: [u32; 3] = [16, 54, 0x4000_0000 | 514];
#[cfg(not(target_arch = "x86_64"))]
const IOCTL: [u32; 3] = [29, 54, 29];

/// `BTRFS_IOC_SNAP_CREATE`, `_SUBVOL_CREATE`, their second versions, and `_SUBVOL_SETFLAGS`.
const REFUSED: [u32; 5] = [0x5000_9401, 0x5000_940e, 0x5000_9417, 0x5000_9418, 0x4008_941a];

/// Offsets into what a filter is shown: the number of the call, and the lower half of its second argument.
const NUMBER: u32 = 0;
const REQUEST: u32 = if cfg!(target_endian = "little") { 24 } else { 28 };

#[expect(clippy::cast_possible_truncation, reason = "codes of instructions have sixteen bits")]
const fn step(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

const fn load(at: u32) -> sock_filter {
    step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0)
}

/// Leaves so many steps out if it is that.
const fn is(value: u32, then: u8) -> sock_filter {
    step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, then, 0)
}

const fn answer(value: u32) -> sock_filter {
    step(libc::BPF_RET | libc::BPF_K, value, 0, 0)
}

const STEPS: u16 = 13;

static FILTER: [sock_filter; STEPS as usize] = [
    load(NUMBER),
    is(IOCTL[0], 3),
    is(IOCTL[1], 2),
    is(IOCTL[2], 1),
    answer(libc::SECCOMP_RET_ALLOW),
    load(REQUEST),
    is(REFUSED[0], 5),
    is(REFUSED[1], 4),
    is(REFUSED[2], 3),
    is(REFUSED[3], 2),
    is(REFUSED[4], 1),
    answer(libc::SECCOMP_RET_ALLOW),
    answer(libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
];

/// Filters what this thread and everything that it starts asks of the kernel, for good. It can gain no rights any more.
/// Negative if the kernel refuses. Only a system call, so that a copy of a process with threads may do it.
pub(super) fn install() -> isize {
    let program = sock_fprog { len: STEPS, filter: FILTER.as_ptr().cast_mut() };
    #[allow(unsafe_code)]
    // SAFETY: the kernel reads the program and its steps, which are there for as long as the call takes.
    unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) as isize
    }
}
