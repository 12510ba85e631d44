//! The mark that ties an installation to one directory.
//!
//! Users, networks and processes of an installation carry its id, and the id is a file in its home. A copy of the home
//! has the same id, and whoever acted on the copy would act on the original. So the home also says which directory it
//! is (`host/place`: number and birth of the directory, and its path), and a directory that is another is refused. A
//! directory that was moved within its file system is still the same.

use crate::problem::{Problem, ProblemKind};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Whose a home is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// This directory's own, or nobody's yet.
    Own,
    /// It was made as this directory, elsewhere or in another life.
    Copy(PathBuf),
}

fn file(home: &Path) -> PathBuf {
    home.join("host").join("place")
}

/// What a copy of the directory does not share with it.
fn identity(home: &Path) -> io::Result<String> {
    let about = fs::metadata(home)?;
    // Not every file system knows when a directory was born.
    let born = about.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |at| at.as_nanos());
    Ok(format!("{} {born}", about.ino()))
}

/// Looks at the mark of a home.
///
/// # Errors
/// When it cannot be read.
pub fn place(home: &Path) -> io::Result<Place> {
    let text = match fs::read_to_string(file(home)) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Place::Own);
        }
        Err(error) => return Err(error),
    };
    let (marked, path) = text.split_once('\n').unwrap_or((&text, ""));
    Ok(if marked == identity(home)? { Place::Own } else { Place::Copy(PathBuf::from(path.trim_end())) })
}

/// Refuses a home that is a copy.
///
/// # Errors
/// `conflict` for a copy; `failed` when its mark cannot be read.
pub fn check(home: &Path) -> Result<(), Problem> {
    match place(home).map_err(|error| unreadable(home, &error))? {
        Place::Own => Ok(()),
        Place::Copy(original) => Err(Problem::new(
            ProblemKind::Conflict,
            format!(
                "{} is a copy of the installation that was made at {}; acting on it would act on that one",
                home.display(),
                original.display()
            ),
            "set ENVFORGE_HOME to the original, or, when that is gone for good, take over with `envforge local adopt`",
        )),
    }
}

/// Writes the mark of a home that has none.
///
/// # Errors
/// When it cannot be written.
pub fn mark(home: &Path) -> io::Result<()> {
    if file(home).exists() { Ok(()) } else { take(home) }
}

/// Marks a home as this directory, whatever it was. On disk as a whole or not at all: half a mark would make every
/// home a copy.
///
/// # Errors
/// When it cannot be written; it is as before then.
pub fn take(home: &Path) -> io::Result<()> {
    let at = file(home);
    let beside = at.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&beside)?;
        file.write_all(format!("{}\n{}\n", identity(home)?, home.display()).as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &at)?;
        fs::File::open(home.join("host"))?.sync_all()
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Whether a home is a copy whose original is gone; false for one that is its own.
///
/// # Errors
/// `conflict` while the original is there.
pub fn is_adoptable(home: &Path) -> Result<bool, Problem> {
    let Place::Copy(original) = place(home).map_err(|error| unreadable(home, &error))? else { return Ok(false) };
    let lives = file(&original).exists() && place(&original).is_ok_and(|place| place == Place::Own);
    if lives {
        return Err(Problem::new(
            ProblemKind::Conflict,
            format!("the original at {} is still there", original.display()),
            "go on with that one; or end it with `envforge local reset` (which removes its workspaces) and adopt then",
        ));
    }
    Ok(true)
}

fn unreadable(home: &Path, error: &io::Error) -> Problem {
    Problem::new(
        ProblemKind::Failed,
        format!("the mark of the installation at {} cannot be used: {}", home.display(), error.kind()),
        "are you the user whose installation it is?",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_refused_a_moved_home_is_not_and_what_is_left_alone_can_be_adopted() {
        let dir = tempfile::tempdir().expect("temp dir");
        let [home, copy, moved] = ["home", "copy", "moved"].map(|name| dir.path().join(name));
        for at in [&home, &copy] {
            fs::create_dir_all(at.join("host")).expect("mkdir");
        }
        assert!(check(&home).is_ok(), "a new home is nobody's");
        mark(&home).expect("marked");
        mark(&home).expect("marked already");
        assert!(check(&home).is_ok());
        fs::copy(file(&home), file(&copy)).expect("copied");
        let refused = check(&copy).expect_err("a copy");
        assert!(refused.message.contains("home") && refused.hint.contains("local adopt"), "{refused:?}");
        assert!(is_adoptable(&copy).is_err(), "the original is there");
        fs::rename(&home, &moved).expect("moved");
        assert!(check(&moved).is_ok());
        // At its path is nothing now: the copy may be all there is.
        assert_eq!(is_adoptable(&copy).ok(), Some(true));
        assert!(check(&copy).is_err(), "nothing is changed by the question");
        take(&copy).expect("taken");
        assert!(check(&copy).is_ok());
        assert_eq!(is_adoptable(&copy).ok(), Some(false));
        assert_eq!(fs::read_dir(copy.join("host")).expect("read").count(), 1, "nothing is left beside the mark");
    }
}
