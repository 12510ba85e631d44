//! Logs of the parts. Each part writes straight into its file (a pipe would break when the keeper dies), so a log is
//! rotated by copying and emptying it; that is safe because everybody appends.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// A log larger than this, in octets, is rotated.
pub(super) const MAX_OCTETS: u64 = 10 << 20;
/// Rotated logs that are kept.
const KEPT: u32 = 3;

/// Opens a log to append to, making it (0600) and rotating it first if it is large.
pub(super) fn open(path: &Path) -> io::Result<File> {
    rotate(path, MAX_OCTETS)?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Moves what is in `path` to `path.1` (and that to `path.2` …) if it is larger than `max` octets.
pub(super) fn rotate(path: &Path, max: u64) -> io::Result<()> {
    if fs::metadata(path).map_or(0, |meta| meta.len()) <= max {
        return Ok(());
    }
    for n in (1..KEPT).rev() {
        match fs::rename(numbered(path, n), numbered(path, n + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::copy(path, numbered(path, 1))?;
    OpenOptions::new().write(true).truncate(true).open(path).map(drop)
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{n}"));
    name.into()
}

/// What was appended to `path` since `from`; everything if it was rotated meanwhile. At most 1 MiB.
pub(super) fn since(path: &Path, from: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let from = if file.metadata()?.len() < from { 0 } else { from };
        file.seek(SeekFrom::Start(from))?;
        let mut octets = Vec::new();
        file.take(1 << 20).read_to_end(&mut octets)?;
        Ok(String::from_utf8_lossy(&octets).into_owned())
    };
    read().unwrap_or_default()
}

/// Length of a log now, in octets.
pub(super) fn len(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// The line appended since `from` that says best why a program ended: the last that names an error, else the last
/// that says anything. Shortened to 300 characters.
pub(super) fn last_line(path: &Path, from: u64) -> Option<String> {
    let text = since(path, from.max(len(path).saturating_sub(64 << 10)));
    let mut lines = text.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next()?;
    let names_an_error = |line: &&str| ["PANIC:", "FATAL:", "error:"].iter().any(|word| line.contains(word));
    Some(lines.find(names_an_error).unwrap_or(last).chars().take(300).collect())
}

/// What to do about a program that ended with `line` as its last word.
pub(super) fn hint(path: &Path, line: Option<&str>) -> String {
    let log = format!("the log is {}", path.display());
    match line {
        Some(line) if line.contains("No space left on device") => format!("free some disk space; {log}"),
        Some(_) | None => log,
    }
}

/// Whether the file system that holds `path` has no space for anything of use.
pub(super) fn has_no_space(path: &Path) -> bool {
    const LEAST: u64 = 64 << 10;
    rustix::fs::statvfs(path).is_ok_and(|about| about.f_bavail.saturating_mul(about.f_frsize) < LEAST)
}

/// Where notes go in a program whose standard error is not the keeper's log.
static NOTES: OnceLock<File> = OnceLock::new();

/// From now on notes of this process go into the log at `path` (the first call decides).
pub(super) fn note_in(path: &Path) {
    if NOTES.get().is_none()
        && let Ok(file) = open(path)
    {
        // Somebody else may have been faster; then theirs is used.
        let _ = NOTES.set(file);
    }
}

/// Writes a line to the keeper's log, which is the keeper's standard error.
pub(super) fn note(text: &str) {
    let line = format!("{} {text}\n", jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ"));
    // There is nobody to tell when this fails.
    let _ = match NOTES.get() {
        Some(mut file) => file.write_all(line.as_bytes()),
        None => io::stderr().write_all(line.as_bytes()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_three_and_the_open_file_goes_on() {
        let dir = super::super::scratch::Scratch::new();
        let path = dir.path().join("a.log");
        let mut file = open(&path).unwrap();
        for round in 0..5 {
            writeln!(file, "round {round}").unwrap();
            rotate(&path, 3).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        let read = |n| fs::read_to_string(numbered(&path, n)).ok();
        assert_eq!([read(1), read(2), read(3)].map(Option::unwrap), ["round 4\n", "round 3\n", "round 2\n"]);
        assert_eq!(read(4), None);
        writeln!(file, "still").unwrap();
        assert_eq!(last_line(&path, 0).as_deref(), Some("still"));
    }

    #[test]
    fn the_line_that_names_the_error_is_told_with_what_to_do() {
        let dir = super::super::scratch::Scratch::new();
        let path = dir.path().join("a.log");
        fs::write(&path, "begin\ninitdb: error: No space left on device\ninitdb: removing contents\n\n").unwrap();
        let line = last_line(&path, 0);
        assert_eq!(line.as_deref(), Some("initdb: error: No space left on device"));
        assert!(hint(&path, line.as_deref()).starts_with("free some disk space; the log is "));
    }
}
