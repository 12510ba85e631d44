//! What is written from now on: each source's current file from where its history ended, over rotations.

use super::read::{self, End, Filter, parse};
use crate::supervise::logs::path_of;
use envforge_api::stream::LogLine;
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
};

/// Octets read of a source at once: a client that is slow leaves the rest on disk.
const CHUNK: usize = 256 << 10;

/// The followed files of one workspace.
#[derive(Debug)]
pub(super) struct Followed {
    dir: PathBuf,
    filter: Filter,
    ends: BTreeMap<String, End>,
}

impl Followed {
    /// Follows from where the history ended; sources that appear are followed from their beginning.
    pub(super) fn new(dir: PathBuf, filter: Filter, ends: BTreeMap<String, End>) -> Self {
        Self { dir, filter, ends }
    }

    /// Whole lines that came since, in the order of time.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn read(&mut self) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        for source in read::sources(&self.dir)?.into_iter().filter(|name| self.filter.wants(name)) {
            let path = path_of(&self.dir, &source);
            let current = match File::open(&path) {
                Ok(file) => file,
                // Between two steps of a rotation: it is there the next time.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let Some(end) = self.ends.get_mut(&source) else {
                let mut end = End { file: current, offset: 0 };
                more(&mut end, &self.filter, &mut lines)?;
                self.ends.insert(source, end);
                continue;
            };
            // Rotation comes before the new file: an old file is at its end once another one is current.
            let rotated = current.metadata()?.ino() != end.file.metadata()?.ino();
            let all = more(end, &self.filter, &mut lines)?;
            if rotated && all {
                *end = End { file: current, offset: 0 };
                more(end, &self.filter, &mut lines)?;
            }
        }
        // Stable: lines of one source stay in their order.
        lines.sort_by_key(|line| line.time);
        Ok(lines)
    }
}

/// Reads on from an end; whether it came to the end of the file.
fn more(end: &mut End, filter: &Filter, lines: &mut Vec<LogLine>) -> io::Result<bool> {
    let mut buffer = vec![0; CHUNK];
    let mut filled = 0;
    while filled < CHUNK {
        match end.file.read_at(&mut buffer[filled..], end.offset + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    let whole = buffer[..filled].iter().rposition(|octet| *octet == b'\n').map_or(0, |at| at + 1);
    lines.extend(buffer[..whole].split(|octet| *octet == b'\n').filter_map(|line| parse(line, filter)));
    // A chunk without an end of line is no log of ours: it is passed over.
    end.offset += if whole == 0 && filled == CHUNK { filled } else { whole } as u64;
    Ok(filled < CHUNK)
}
