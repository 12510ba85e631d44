//! Terminals for people: a pseudo-terminal whose user side goes into a workspace.

use super::{Result, SystemError, accounts::Account};
use envforge_api::stream::TerminalSize;
use rustix::{
    fs::{Mode, OFlags},
    pty::OpenptFlags,
    termios::Winsize,
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};
use tokio::io::{Interest, unix::AsyncFd};

/// The host's side of a terminal.
#[derive(Debug)]
pub struct Pty {
    controller: AsyncFd<OwnedFd>,
}

impl Pty {
    /// A terminal of this size that belongs to `owner`; returns the host's side and the user's.
    ///
    /// # Errors
    /// When the machine has no terminals left.
    pub fn open(size: TerminalSize, owner: &Account) -> Result<(Self, OwnedFd)> {
        let failed = |e: rustix::io::Errno| SystemError::new("open a terminal", e.into());
        let controller =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(failed)?;
        rustix::pty::grantpt(&controller).map_err(failed)?;
        rustix::pty::unlockpt(&controller).map_err(failed)?;
        let name = rustix::pty::ptsname(&controller, Vec::new()).map_err(failed)?;
        let user =
            rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(&user, Some(rustix::fs::Uid::from_raw(owner.uid)), None).map_err(failed)?;
        }
        rustix::io::ioctl_fionbio(&controller, true).map_err(failed)?;
        let controller = super::watch(controller, Interest::READABLE | Interest::WRITABLE)
            .map_err(|e| SystemError::new("open a terminal", e))?;
        let pty = Self { controller };
        pty.resize(size)?;
        Ok((pty, user))
    }

    /// Tells the programs on the terminal its new size.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        let size = Winsize { ws_col: size.columns.max(1), ws_row: size.rows.max(1), ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.controller.get_ref(), size)
            .map_err(|e| SystemError::new("resize a terminal", e.into()))
    }

    /// Reads what programs wrote; 0 when the last of them is gone.
    ///
    /// # Errors
    /// When the terminal is broken.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.controller.readable().await?;
            match ready.try_io(|fd| rustix::io::read(fd.get_ref().as_fd(), &mut *buffer).map_err(io::Error::from)) {
                // The user side was closed by its last process.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => return Ok(0),
                Ok(done) => return done,
                Err(_would_block) => {}
            }
        }
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.controller.writable().await?;
            match ready.try_io(|fd| rustix::io::write(fd.get_ref().as_fd(), bytes).map_err(io::Error::from)) {
                Ok(written) => bytes = &bytes[written?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}
