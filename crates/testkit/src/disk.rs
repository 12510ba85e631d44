//! A small file system of a test's own, to be filled and freed.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
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

    /// Mounts one of a kind (`xfs`, `btrfs`, `ext4`) and so many MiB, that lies in a file beside the new directory. `None`, said
    /// on standard error, where it cannot be made or mounted.
    ///
    /// # Panics
    /// When directory or file cannot be made.
    #[must_use]
    pub fn image(at: &Path, kind: &str, mib: u64) -> Option<Self> {
        fs::create_dir(at).expect("make a directory");
        let image = at.with_extension(kind);
        fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("make a file");
        let ran = |program: &str, args: &[&std::ffi::OsStr]| {
            let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
            Command::new(program).env("PATH", path).args(args).output().is_ok_and(|out| out.status.success())
        };
        let mkfs = format!("mkfs.{kind}");
        let options = ["-o", "loop", "-t", kind].map(std::ffi::OsStr::new);
        let mounted = ran(&mkfs, &["-q".as_ref(), image.as_ref()])
            && ran("mount", &[options.as_slice(), &[image.as_ref(), at.as_ref()]].concat());
        if !mounted {
            let _ = writeln!(std::io::stderr(), "skipped: no {kind} can be made and mounted here ({mkfs}, as root)");
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
