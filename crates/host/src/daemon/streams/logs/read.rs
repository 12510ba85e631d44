//! What was written so far: the files of each source, oldest first, merged by time.

use crate::supervise::logs::{KEEP, path_of};
use envforge_api::{
    stream::{LogLevel, LogLine, LogQuery},
    time::Timestamp,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Lines handed on at once.
const BATCH: usize = 256;

/// Which lines are wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    sources: BTreeSet<String>,
    level: Option<LogLevel>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Filter {
    /// The filter of a query.
    pub(super) fn of(query: &LogQuery) -> Self {
        let sources = query.sources.iter().cloned().collect();
        Self { sources, level: query.level, since: query.since, until: query.until }
    }

    /// Whether a source is wanted: by its whole name.
    pub(super) fn wants(&self, source: &str) -> bool {
        self.sources.is_empty() || self.sources.contains(source)
    }

    /// Whether a line of a wanted source is.
    pub(super) fn passes(&self, line: &LogLine) -> bool {
        self.level.is_none_or(|level| line.level >= level)
            && self.since.is_none_or(|since| line.time >= since)
            && self.until.is_none_or(|until| line.time <= until)
    }

    /// Whether nothing that is written from now on can pass.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now > until)
    }
}

/// The sources that wrote something.
pub(super) fn sources(dir: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.strip_suffix(".jsonl").map(ToOwned::to_owned)).collect())
}

/// Where the history of a source ended: its current file up to the last whole line.
#[derive(Debug)]
pub(super) struct End {
    pub(super) file: File,
    pub(super) offset: u64,
}

/// The files of one source as they are now, oldest first; the last is the current one.
fn open(dir: &Path, source: &str) -> io::Result<Vec<(File, u64)>> {
    let current = path_of(dir, source);
    let mut seen = BTreeSet::new();
    let mut files = VecDeque::new();
    // Newest first: a rotation in between shows a file twice, never not at all.
    let rotated = (1..=KEEP).map(|n| PathBuf::from(format!("{}.{n}", current.display())));
    for path in std::iter::once(current.clone()).chain(rotated) {
        match File::open(&path) {
            Ok(file) => {
                let about = file.metadata()?;
                if seen.insert((about.dev(), about.ino())) {
                    files.push_front((file, about.len()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files.into())
}

/// Lines of one file up to a length.
struct Lines {
    reader: BufReader<io::Take<File>>,
    line: Vec<u8>,
    /// Octets of whole lines read.
    offset: u64,
}

impl Lines {
    fn new(file: File, len: u64) -> Self {
        Self { reader: BufReader::with_capacity(64 << 10, file.take(len)), line: Vec::new(), offset: 0 }
    }

    /// The next whole line that can be read and passes.
    fn next(&mut self, filter: &Filter) -> io::Result<Option<LogLine>> {
        loop {
            self.line.clear();
            let read = self.reader.read_until(b'\n', &mut self.line)?;
            if self.line.last() != Some(&b'\n') {
                return Ok(None);
            }
            self.offset += read as u64;
            if let Some(line) = parse(&self.line, filter) {
                return Ok(Some(line));
            }
        }
    }
}

/// A line if it is one (a full disk may have cut it short) and passes.
pub(super) fn parse(line: &[u8], filter: &Filter) -> Option<LogLine> {
    serde_json::from_slice(line).ok().filter(|line| filter.passes(line))
}

/// Lines of one source, oldest first.
struct Source {
    files: VecDeque<(File, u64)>,
    now: Option<Lines>,
    ready: VecDeque<LogLine>,
    end: Option<End>,
}

impl Source {
    fn new(files: Vec<(File, u64)>) -> Self {
        Self { files: files.into(), now: None, ready: VecDeque::new(), end: None }
    }

    fn next(&mut self, filter: &Filter) -> io::Result<Option<LogLine>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            if let Some(lines) = &mut self.now {
                if let Some(line) = lines.next(filter)? {
                    return Ok(Some(line));
                }
                if let Some(done) = self.now.take() {
                    self.end = Some(End { offset: done.offset, file: done.reader.into_inner().into_inner() });
                }
            }
            match self.files.pop_front() {
                Some((file, len)) => self.now = Some(Lines::new(file, len)),
                None => return Ok(None),
            }
        }
    }

    /// Leaves only the last `count` lines. Older files are not even read when newer ones hold enough.
    fn keep_last(&mut self, count: usize, filter: &Filter) -> io::Result<()> {
        let mut kept = VecDeque::new();
        while let Some((file, len)) = self.files.pop_back() {
            let mut lines = Lines::new(file, len);
            let mut of_file = VecDeque::new();
            while let Some(line) = lines.next(filter)? {
                of_file.push_back(line);
                if of_file.len() + kept.len() > count {
                    of_file.pop_front();
                }
            }
            let offset = lines.offset;
            self.end.get_or_insert_with(|| End { offset, file: lines.reader.into_inner().into_inner() });
            of_file.append(&mut kept);
            kept = of_file;
            if kept.len() >= count {
                self.files.clear();
            }
        }
        self.ready = kept;
        Ok(())
    }
}

/// Hands on the lines that pass, in the order of time, in batches until one is not taken; returns where each source
/// ended. Holds one line of each source, or `tail` of each.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn history(
    dir: &Path,
    filter: &Filter,
    tail: Option<usize>,
    take: &dyn Fn(Vec<LogLine>) -> bool,
) -> io::Result<BTreeMap<String, End>> {
    let names: Vec<String> = sources(dir)?.into_iter().filter(|name| filter.wants(name)).collect();
    let mut all = Vec::with_capacity(names.len());
    for name in &names {
        let mut source = Source::new(open(dir, name)?);
        if let Some(count) = tail {
            source.keep_last(count, filter)?;
        }
        all.push(source);
    }
    // With a tail everything is in memory: what is too much is the oldest of all.
    let mut surplus = tail.map_or(0, |count| all.iter().map(|s| s.ready.len()).sum::<usize>().saturating_sub(count));
    let mut heads = BinaryHeap::new();
    let mut waiting: Vec<Option<LogLine>> = Vec::with_capacity(all.len());
    for (at, source) in all.iter_mut().enumerate() {
        let head = source.next(filter)?;
        heads.extend(head.as_ref().map(|line| Reverse((line.time, at))));
        waiting.push(head);
    }
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(Reverse((_, at))) = heads.pop() {
        let next = all[at].next(filter)?;
        heads.extend(next.as_ref().map(|line| Reverse((line.time, at))));
        let line = std::mem::replace(&mut waiting[at], next);
        if surplus > 0 {
            surplus -= 1;
            continue;
        }
        batch.extend(line);
        if batch.len() == BATCH && !take(std::mem::take(&mut batch)) {
            break;
        }
    }
    if !batch.is_empty() {
        // Not taken: the client is gone, and what is returned is dropped.
        let _ = take(batch);
    }
    Ok(names.into_iter().zip(all).filter_map(|(name, source)| Some((name, source.end?))).collect())
}
