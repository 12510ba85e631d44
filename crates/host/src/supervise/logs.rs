//! Logs of one workspace on disk: a file of JSON lines for each source, rotated by size, redacted as it is written.

use super::redact::Redactor;
use envforge_api::{
    stream::{LogLevel, LogLine},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// A file is rotated when it is larger, in octets.
pub const ROTATE_AT: u64 = 8 << 20;
/// Rotated files that are kept beside the current one.
pub const KEEP: u32 = 3;
/// A longer line is cut into several, in octets.
const LONGEST_LINE: usize = 16 << 10;
/// Lines of each source kept in memory, to be shown with a failure.
const REMEMBERED: usize = 20;

/// Writes the logs of one workspace. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    redactor: Redactor,
    sources: BTreeMap<String, Source>,
}

#[derive(Debug, Default)]
struct Source {
    /// Absent while it cannot be opened.
    file: Option<Current>,
    last: VecDeque<String>,
    /// Lines that the disk did not take since it last took one.
    lost: u64,
}

#[derive(Debug)]
struct Current {
    file: fs::File,
    size: u64,
    /// The last write ended in the middle of a line.
    torn: bool,
}

/// Path of a source's current file.
#[must_use]
pub fn path_of(dir: &Path, source: &str) -> PathBuf {
    dir.join(format!("{source}.jsonl"))
}

impl Logs {
    /// Logs below `dir`.
    #[must_use]
    pub fn new(dir: PathBuf, redactor: Redactor) -> Self {
        Self(Arc::new(Mutex::new(Inner { dir, redactor, sources: BTreeMap::new() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic while a line is written leaves at worst that line cut short.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what is masked from now on.
    pub fn set_redactor(&self, redactor: Redactor) {
        self.inner().redactor = redactor;
    }

    /// The text with every secret masked.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        self.inner().redactor.clean(text)
    }

    /// Appends a line. A disk that refuses loses the line, never the service that wrote it.
    pub fn write(&self, source: &str, level: LogLevel, message: &str) {
        let mut inner = self.inner();
        let message = inner.redactor.clean(message);
        inner.append(LogLine { time: Timestamp::now(), source: source.to_owned(), level, message });
    }

    /// A line about the runtime itself.
    pub fn system(&self, level: LogLevel, message: &str) {
        self.write("system", level, message);
    }

    /// The last lines of a source since the supervisor started, redacted.
    #[must_use]
    pub fn last(&self, source: &str) -> Vec<String> {
        self.inner().sources.get(source).map(|s| s.last.iter().cloned().collect()).unwrap_or_default()
    }

    /// Copies a stream of output into a source, line by line, until it ends.
    pub async fn copy(self, source: String, stream: impl AsyncRead + Unpin) {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while let Some(text) = next_line(&mut reader, &mut line).await {
            self.write(&source, level_of(&text), &text);
        }
    }
}

/// The next line without its line feed, lossily decoded and cut at the longest length; `None` at the end.
pub(crate) async fn next_line(reader: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> Option<String> {
    line.clear();
    loop {
        let available = match reader.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(bytes) => bytes,
        };
        let room = LONGEST_LINE - line.len();
        let end = available.iter().take(room).position(|b| *b == b'\n');
        let taken = end.unwrap_or(available.len().min(room));
        line.extend_from_slice(&available[..taken]);
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() || line.len() == LONGEST_LINE {
            return Some(text_of(line));
        }
    }
    (!line.is_empty()).then(|| text_of(line))
}

fn text_of(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches('\r').to_owned()
}

/// Severity guessed from the first words of a line.
#[must_use]
pub fn level_of(text: &str) -> LogLevel {
    let head: String = text.chars().take(120).collect::<String>().to_ascii_lowercase();
    let has = |words: &[&str]| {
        words.iter().any(|word| {
            head.match_indices(word).any(|(at, _)| {
                let before = head[..at].chars().next_back();
                let after = head[at + word.len()..].chars().next();
                !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
            })
        })
    };
    if has(&["error", "err", "fatal", "panic", "critical", "exception"]) {
        LogLevel::Error
    } else if has(&["warn", "warning"]) {
        LogLevel::Warn
    } else if has(&["debug", "trace"]) {
        LogLevel::Debug
    } else {
        LogLevel::Info
    }
}

impl Inner {
    fn append(&mut self, line: LogLine) {
        let path = path_of(&self.dir, &line.source);
        let source = self.sources.entry(line.source.clone()).or_default();
        if source.file.as_ref().is_some_and(|current| current.size > ROTATE_AT) {
            rotate(&path);
            source.file = None;
        }
        if source.file.is_none() {
            source.file = open(&path);
        }
        let lost = source.lost;
        let written = source.file.as_mut().is_some_and(|current| {
            let gap = LogLine {
                message: format!("{lost} lines before this one are not kept: the disk was full"),
                level: LogLevel::Warn,
                ..line.clone()
            };
            (lost == 0 || current.write(&gap)) && current.write(&line)
        });
        source.lost = if written { 0 } else { lost + 1 };
        if source.last.len() == REMEMBERED {
            source.last.pop_front();
        }
        source.last.push_back(line.message);
    }
}

impl Current {
    /// Whether the whole line is in the file. One that was cut short by a full disk is ended before the next.
    fn write(&mut self, line: &LogLine) -> bool {
        let Ok(json) = serde_json::to_vec(line) else { return false };
        let start: &[u8] = if self.torn { b"\n" } else { b"" };
        let bytes = [start, &json, b"\n"].concat();
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            match self.file.write(left) {
                Ok(0) => break,
                Ok(n) => left = &left[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let done = bytes.len() - left.len();
        self.size += done as u64;
        if done > 0 {
            self.torn = !left.is_empty() && bytes[done - 1] != b'\n';
        }
        left.is_empty()
    }
}

fn open(path: &Path) -> Option<Current> {
    let file = fs::OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path).ok()?;
    let size = file.metadata().map_or(0, |m| m.len());
    let mut last = [b'\n'];
    // What cannot be read is taken for whole.
    let torn = size > 0 && file.read_exact_at(&mut last, size - 1).is_ok() && last != *b"\n";
    Some(Current { file, size, torn })
}

fn rotate(path: &Path) {
    let numbered = |n: u32| PathBuf::from(format!("{}.{n}", path.display()));
    let _ = fs::remove_file(numbered(KEEP));
    for n in (1..KEEP).rev() {
        let _ = fs::rename(numbered(n), numbered(n + 1));
    }
    let _ = fs::rename(path, numbered(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word_not_a_part_of_one() {
        assert_eq!(level_of("2026-01-01 ERROR: no"), LogLevel::Error);
        assert_eq!(level_of("mirror terraform"), LogLevel::Info);
        assert_eq!(level_of("(node:1) Warning: x"), LogLevel::Warn);
    }

    #[test]
    fn what_a_full_disk_cut_short_costs_no_line_that_comes_after_and_the_gap_is_told() {
        let dir = tempfile::tempdir().expect("temp dir");
        let logs = Logs::new(dir.path().to_owned(), Redactor::default());
        let path = path_of(dir.path(), "web");
        fs::write(&path, "{\"half").expect("write");
        logs.write("web", LogLevel::Info, "one");
        // A file that takes nothing, as a full disk does.
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("open");
        logs.inner().sources.get_mut("web").expect("source").file.as_mut().expect("file").file = full;
        logs.write("web", LogLevel::Info, "two");
        logs.write("web", LogLevel::Info, "three");
        logs.inner().sources.get_mut("web").expect("source").file = None;
        logs.write("web", LogLevel::Info, "four");
        let text = fs::read_to_string(&path).expect("read");
        let lines = text.lines().filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
        let said: Vec<_> = lines.map(|line| line.message).collect();
        assert_eq!(said, ["one", "2 lines before this one are not kept: the disk was full", "four"]);
        assert_eq!(logs.last("web"), ["one", "two", "three", "four"]);
    }

    #[tokio::test]
    async fn endless_lines_are_cut_and_the_last_one_needs_no_line_feed() {
        let text = [vec![b'a'; LONGEST_LINE + 5], b"\r\nend".to_vec()].concat();
        let mut reader = BufReader::new(text.as_slice());
        let mut line = Vec::new();
        let mut lengths = Vec::new();
        while let Some(text) = next_line(&mut reader, &mut line).await {
            lengths.push(text.len());
        }
        assert_eq!(lengths, [LONGEST_LINE, 5, 3]);
    }
}
