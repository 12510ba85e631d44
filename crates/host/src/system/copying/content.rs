//! What is in a file: cloned where the file system shares extents between files, else copied by the kernel, holes left
//! as holes.

use super::Stop;
use rustix::{
    fs::{SeekFrom, Stat, XattrFlags},
    io::Errno,
};
use std::{fs, io, os::fd::OwnedFd, path::Path};

/// How content gets from one file into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Both files share their extents until one is written to (`FICLONE`): XFS, btrfs and others.
    Clone,
    /// Octet by octet.
    Copy,
}

/// Octets between two looks at whether to stop.
const CHUNK: usize = 8 << 20;
/// Longest list of attributes' names, and longest attribute, that is copied.
const ATTRIBUTES: usize = 64 << 10;

/// What works between two directories of the caller's own: tried with a file in each.
#[must_use]
pub fn way_between(from: &Path, to: &Path) -> Way {
    let (source, target) = (from.join(".clone-from"), to.join(".clone-to"));
    let tried = || -> io::Result<()> {
        fs::write(&source, [1_u8; 4096])?;
        let (source, target) = (fs::File::open(&source)?, fs::File::create(&target)?);
        Ok(rustix::fs::ioctl_ficlone(&target, &source)?)
    };
    let way = if tried().is_ok() { Way::Clone } else { Way::Copy };
    let _ = fs::remove_file(&source);
    let _ = fs::remove_file(&target);
    way
}

/// Puts what is in `source` into `target`, which has the first `has` octets of it and nothing else. Returns how many
/// were moved; what is shared is not.
pub(super) fn copy(
    source: &OwnedFd,
    target: &OwnedFd,
    about: &Stat,
    has: u64,
    way: &mut Way,
    stop: Stop<'_>,
) -> io::Result<u64> {
    let size = u64::try_from(about.st_size).unwrap_or(0);
    if size <= has {
        return Ok(0);
    }
    if *way == Way::Clone && has == 0 {
        match rustix::fs::ioctl_ficlone(target, source) {
            // However large it is, the next pass has no more to do for it.
            Ok(()) => return Ok(0),
            // Files of some kinds cannot be cloned where others can.
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::TXTBSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let sparse = u64::try_from(about.st_blocks).unwrap_or(u64::MAX).saturating_mul(512) < size;
    if !sparse {
        return range(source, target, has, size, stop);
    }
    let (mut at, mut moved) = (has, 0);
    while at < size {
        let data = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(data))?.min(size);
        if data >= end {
            break;
        }
        moved += range(source, target, data, end, stop)?;
        at = end;
    }
    rustix::fs::ftruncate(target, size)?;
    Ok(moved)
}

fn range(source: &OwnedFd, target: &OwnedFd, from: u64, to: u64, stop: Stop<'_>) -> io::Result<u64> {
    let (mut read, mut written) = (from, from);
    while read < to {
        if stop() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = usize::try_from(to - read).unwrap_or(CHUNK).min(CHUNK);
        match rustix::fs::copy_file_range(source, Some(&mut read), target, Some(&mut written), length) {
            // It was cut short meanwhile.
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return by_hand(source, target, read, to, stop).map(|more| more + (read - from));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(read - from)
}

fn by_hand(source: &OwnedFd, target: &OwnedFd, from: u64, to: u64, stop: Stop<'_>) -> io::Result<u64> {
    let mut buffer = vec![0_u8; 1 << 20];
    let mut at = from;
    while at < to {
        if stop() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = usize::try_from(to - at).unwrap_or(buffer.len()).min(buffer.len());
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(source, &mut buffer[..length], at))?;
        if read == 0 {
            break;
        }
        let mut written = 0;
        while written < read {
            written +=
                rustix::io::retry_on_intr(|| rustix::io::pwrite(target, &buffer[written..read], at + written as u64))?;
        }
        at += read as u64;
    }
    Ok(at - from)
}

/// The user's own extended attributes; those of the system are about owners and rights that the copy has not.
pub(super) fn copy_attributes(source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    // Most files have none, which costs one question.
    let mut names = [0_u8; 1024];
    let length = match rustix::fs::flistxattr(source, &mut names[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(length) => length,
        Err(Errno::RANGE) => return copy_named(source, target, &mut vec![0_u8; ATTRIBUTES]),
        Err(error) => return Err(error.into()),
    };
    each(source, target, &names[..length])
}

fn copy_named(source: &OwnedFd, target: &OwnedFd, names: &mut [u8]) -> io::Result<()> {
    let length = rustix::fs::flistxattr(source, &mut *names)?;
    each(source, target, &names[..length])
}

fn each(source: &OwnedFd, target: &OwnedFd, names: &[u8]) -> io::Result<()> {
    let mut value = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| name.starts_with(b"user.")) {
        value.resize(ATTRIBUTES, 0);
        match rustix::fs::fgetxattr(source, name, &mut value[..]) {
            Ok(length) => match rustix::fs::fsetxattr(target, name, &value[..length], XattrFlags::empty()) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            },
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
