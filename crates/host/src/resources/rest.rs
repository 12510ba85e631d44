//! What lies on disk of a server that does not run: a look that costs a wake next to nothing, and says whether anything
//! touched the data while it slept.
//!
//! The data is its resource user's: nothing is followed or opened there but plain files beneath the directory.

use crate::system::files::Beneath;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Instant,
};

/// Files are read for a digest of their content if all of them together are not larger.
const SMALL: u64 = 4 << 20;

/// The data of a server at rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// Which data it is, where the server gives it a name for good.
    #[serde(default)]
    pub identity: Option<String>,
    /// Where the server's own log ended, where it has one and closed it.
    #[serde(default)]
    pub position: Option<String>,
    /// Number of files.
    pub files: u64,
    /// Octets of all of them.
    pub octets: u64,
    /// Digest of names and sizes.
    pub sizes: String,
    /// The same with times of change.
    pub stamps: String,
    /// Digest of names and content, where they are small.
    #[serde(default)]
    pub content: Option<String>,
    /// Someone who only reads it may change the files.
    #[serde(default)]
    pub read_by_others: bool,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// This.
    Found(Rest),
    /// No file.
    Gone,
    /// Nothing in time, or nothing that can be read.
    Unknown,
}

/// How two looks compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// Nobody touched it.
    Same,
    /// Someone did; whether that changed anything is for the server to say.
    Touched,
    /// It is not what it was.
    Differs(Vec<String>),
}

/// Looks at all files of a directory, until then at most.
#[must_use]
pub fn look(dir: &Path, is_left_out: impl Fn(&Path) -> bool, until: Instant) -> Look {
    let mut found = Vec::new();
    match walk(dir, Path::new(""), &is_left_out, until, &mut found) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && found.is_empty() => return Look::Gone,
        Err(_) => return Look::Unknown,
    }
    if found.is_empty() {
        return Look::Gone;
    }
    found.sort();
    let (mut sizes, mut stamps) = (Sha256::new(), Sha256::new());
    for File { path, octets, changed } in &found {
        let line = format!("{}\0{octets}\n", path.display());
        sizes.update(&line);
        stamps.update(format!("{line}{changed:?}"));
    }
    let octets = found.iter().map(|file| file.octets).sum();
    let content = if octets <= SMALL { content(dir, &found, until) } else { None };
    Look::Found(Rest {
        files: found.len() as u64,
        octets,
        sizes: hex(sizes),
        stamps: hex(stamps),
        content,
        ..Rest::default()
    })
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct File {
    path: PathBuf,
    octets: u64,
    changed: [i64; 2],
}

fn walk(
    dir: &Path,
    at: &Path,
    is_left_out: &impl Fn(&Path) -> bool,
    until: Instant,
    found: &mut Vec<File>,
) -> io::Result<()> {
    if Instant::now() > until {
        return Err(io::ErrorKind::TimedOut.into());
    }
    for entry in fs::read_dir(dir.join(at))? {
        let entry = entry?;
        let path = at.join(entry.file_name());
        if is_left_out(&path) {
            continue;
        }
        // Of the entry itself: a link is none of the two.
        let about = entry.metadata()?;
        if about.is_dir() {
            walk(dir, &path, is_left_out, until, found)?;
        } else if about.is_file() {
            found.push(File { path, octets: about.len(), changed: [about.mtime(), about.mtime_nsec()] });
        }
    }
    Ok(())
}

fn content(dir: &Path, files: &[File], until: Instant) -> Option<String> {
    let beneath = Beneath::open(dir).ok()?;
    let mut digest = Sha256::new();
    for file in files {
        if Instant::now() > until {
            return None;
        }
        digest.update(format!("{}\0{}\n", file.path.display(), file.octets));
        digest.update(beneath.read(&file.path, SMALL).ok()?);
    }
    Some(hex(digest))
}

fn hex(digest: Sha256) -> String {
    data_encoding::HEXLOWER.encode(&digest.finalize())
}

impl Rest {
    /// How it is, as against how it was `before`.
    #[must_use]
    pub fn compare(&self, before: &Self) -> Compared {
        let mut found = Vec::new();
        if self.identity != before.identity {
            found.push("it is other data, with a name of its own".to_owned());
        }
        if self.position != before.position {
            let shown =
                |position: &Option<String>| position.clone().unwrap_or_else(|| "nowhere: it was not closed".into());
            found.push(format!("its log ends at {}, and ended at {}", shown(&self.position), shown(&before.position)));
        }
        let same_content = match (&self.content, &before.content) {
            (Some(now), Some(then)) => Some(now == then),
            (None, _) | (_, None) => None,
        };
        if !self.read_by_others {
            if self.sizes != before.sizes {
                let Self { files, octets, .. } = before;
                found.push(format!("{} files of {} octets, were {files} of {octets}", self.files, self.octets));
            } else if same_content == Some(false) {
                found.push("the content of its files is another".to_owned());
            }
        }
        match (found.is_empty(), same_content, self.stamps == before.stamps) {
            (false, _, _) => Compared::Differs(found),
            (true, Some(true), _) | (true, None, true) => Compared::Same,
            (true, Some(false), _) | (true, None, false) => Compared::Touched,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn seen(dir: &Path) -> Rest {
        match look(dir, |path| path == Path::new("left.out"), Instant::now() + Duration::from_secs(60)) {
            Look::Found(rest) => rest,
            other => panic!("{other:?}"),
        }
    }

    fn touch(path: &Path) {
        let file = fs::File::options().write(true).open(path).expect("opened");
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("touched");
    }

    #[test]
    fn data_that_nobody_touched_is_the_same_and_what_changed_is_told() {
        let dir = tempfile::tempdir().expect("temp dir");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).expect("made");
        for (name, text) in [("a", "one"), ("sub/b", "two"), ("left.out", "x")] {
            fs::write(at(name), text).expect("written");
        }
        let before = seen(dir.path());
        assert_eq!((before.files, before.octets), (2, 6));
        fs::write(at("left.out"), "longer").expect("written");
        assert_eq!(seen(dir.path()).compare(&before), Compared::Same);
        touch(&at("a"));
        assert_eq!(seen(dir.path()).compare(&before), Compared::Same, "its content says so");
        fs::write(at("a"), "1ne").expect("written");
        let other = Compared::Differs(vec!["the content of its files is another".into()]);
        assert_eq!(seen(dir.path()).compare(&before), other);
        fs::write(at("a"), "on").expect("written");
        let shorter = Compared::Differs(vec!["2 files of 5 octets, were 2 of 6".into()]);
        assert_eq!(seen(dir.path()).compare(&before), shorter);
        let read_by_others = Rest { read_by_others: true, ..seen(dir.path()) };
        assert_eq!(read_by_others.compare(&before), Compared::Touched);
    }

    #[test]
    fn a_link_is_not_followed_and_large_files_are_told_apart_by_time() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a");
        fs::File::create(&path).expect("made").set_len(SMALL + 1).expect("long");
        let before = seen(dir.path());
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("linked");
        assert_eq!(seen(dir.path()).compare(&before), Compared::Same);
        touch(&path);
        assert_eq!(seen(dir.path()).compare(&before), Compared::Touched);
    }

    #[test]
    fn a_log_that_went_on_is_told_and_what_is_not_there_is_gone() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join("a"), "x").expect("written");
        let before = Rest { position: Some("0/1".into()), ..seen(dir.path()) };
        let now = Rest { position: Some("0/2".into()), ..seen(dir.path()) };
        assert_eq!(now.compare(&before), Compared::Differs(vec!["its log ends at 0/2, and ended at 0/1".into()]));
        let soon = Instant::now() + Duration::from_secs(60);
        assert_eq!(look(&dir.path().join("none"), |_| false, soon), Look::Gone);
        assert_eq!(look(dir.path(), |_| true, soon), Look::Gone);
        assert_eq!(look(dir.path(), |_| false, Instant::now() - Duration::from_millis(1)), Look::Unknown);
    }
}
