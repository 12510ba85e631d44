//! A small file system of a test's own, to be filled and freed.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

/// A mounted file system in memory; gone when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many MiB at a new directory. `None`, said on standard error, where the caller may not mount.
    ///
    /// # Panics
    /// When the directory cannot be made.
    #[must_use]
    pub fn mount(at: &Path, mib: u32) -> Option<Self> {
        fs::create_dir(at).expect("make a directory");
        let options = format!("mode=0755,size={mib}m");
        let mounted = mount(Some("small"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()));
        if let Err(error) = mounted {
            let _ = writeln!(std::io::stderr(), "skipped: a small file system cannot be mounted here ({error})");
            return None;
        }
        Some(Self { at: at.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Takes all the space that is left.
    ///
    /// # Panics
    /// When a write fails for another reason.
    pub fn fill(&self) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.ballast()).expect("open");
        let chunk = vec![b'x'; 1 << 20];
        let mut length = chunk.len();
        while length > 0 {
            match file.write(&chunk[..length]) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => length /= 2,
                Err(error) => panic!("fill the disk: {error}"),
            }
        }
    }

    /// Gives back so many KiB of what [`Self::fill`] took.
    ///
    /// # Panics
    /// When it took less.
    pub fn leave(&self, kib: u64) {
        let file = fs::OpenOptions::new().write(true).open(self.ballast()).expect("open");
        let length = file.metadata().expect("metadata").len();
        file.set_len(length.checked_sub(kib << 10).expect("so much was taken")).expect("shorten");
    }

    /// Gives back what [`Self::fill`] took, if it did.
    pub fn free(&self) {
        let _ = fs::remove_file(self.ballast());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still uses it goes on in what no path leads to.
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}
