//! Stopping an installation, also one whose keeper is gone, and removing it.

use super::{
    keeper::PARTS,
    log,
    paths::{Paths, Programs},
    prepare,
    process::{Process, kill_all_working_in},
    program::broken,
    state::{Lock, Named, Phase, Record, keeper_lives},
};
use envforge_api::problem::{Problem, ProblemKind};
use rustix::process::Signal;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// The sum of what the parts may take to stop, and a little.
const PATIENCE: Duration = Duration::from_secs(130);

/// See [`super::stop`].
pub(super) async fn stop(paths: &Paths) -> Result<(), Problem> {
    if !paths.home().exists() {
        return Ok(());
    }
    log::note_in(&paths.log("keeper"));
    let begun = Instant::now();
    let mut asked: Option<Named> = None;
    while keeper_lives(paths) {
        // A keeper that has just taken the lock has not written its name yet.
        let keeper = Record::read(paths).map(|record| record.keeper).filter(|keeper| keeper.lives());
        if let Some(name) = keeper
            && asked != Some(name)
            && let Some(mut process) = Process::adopt(name)
        {
            process.signal(Signal::TERM).map_err(|error| broken("stop the keeper", &error))?;
            asked = Some(name);
            // Past the end of this wait the loop says so.
            let _ = timeout(PATIENCE, process.wait()).await;
        } else {
            sleep(Duration::from_millis(5)).await;
        }
        if begun.elapsed() >= PATIENCE {
            return Err(Problem::new(
                ProblemKind::Timeout,
                format!("the installation did not stop within {} seconds", PATIENCE.as_secs()),
                format!("the log is {}", paths.log("keeper").display()),
            ));
        }
    }
    // Nothing is left for this, unless the keeper did not live long enough to stop its parts.
    stop_without_keeper(paths).await
}

/// See [`super::stop_all`].
pub(super) async fn stop_all(paths: &Paths, programs: &Programs) -> Result<(), Problem> {
    if !paths.home().exists() {
        return Ok(());
    }
    stop(paths).await?;
    prepare::quiesce(paths, programs).await
}

/// What a killed keeper left running is stopped under its lock, so that no new keeper takes it over meanwhile.
async fn stop_without_keeper(paths: &Paths) -> Result<(), Problem> {
    if Record::read(paths).is_none_or(|record| record.phase == Phase::Stopped) {
        return Ok(());
    }
    let Some(_lock) = Lock::take(paths).map_err(|error| broken("take the keeper's lock", &error))? else {
        return Err(Problem::new(
            ProblemKind::Conflict,
            "the installation is being started by somebody else",
            "run `envforge local stop` again",
        ));
    };
    end_left(paths).await
}

/// Ends the processes of the parts as they are written down, the last started first.
///
/// # Errors
/// When something of the database lives on.
pub(super) async fn end_left(paths: &Paths) -> Result<(), Problem> {
    let Some(record) = Record::read(paths) else { return Ok(()) };
    for name in PARTS.iter().rev() {
        let left = record.part(name).and_then(|part| part.process).and_then(Process::adopt);
        if let Some(mut process) = left {
            let (signal, grace) = if *name == "postgres" { (Signal::INT, 30) } else { (Signal::TERM, 10) };
            let how = process.end(signal, Duration::from_secs(grace)).await;
            log::note(&format!("{name}: stopped ({how})"));
        }
    }
    kill_all_working_in(&paths.data()).await
}

/// See [`super::reset`].
pub(super) async fn reset(paths: &Paths, programs: &Programs) -> Result<(), Problem> {
    if !paths.home().exists() {
        return Ok(());
    }
    refuse_foreign(paths)?;
    stop(paths).await?;
    // Nobody may start it while it is taken away.
    let _lock = Lock::take(paths).map_err(|error| broken("take the keeper's lock", &error))?;
    prepare::wipe(paths, programs).await?;
    if let Some(mounted) = mounts_below(paths.home()).first() {
        return Err(Problem::new(
            ProblemKind::Failed,
            format!("something is still mounted at {}, so the home was not removed", mounted.display()),
            format!("umount {}, then run `envforge local reset` again", mounted.display()),
        ));
    }
    remove(paths.home()).await.map_err(|error| broken(&format!("remove {}", paths.home().display()), &error))
}

/// Refuses to remove a directory that no keeper ever used, whatever `ENVFORGE_HOME` says.
fn refuse_foreign(paths: &Paths) -> Result<(), Problem> {
    let home = paths.home();
    let empty = fs::read_dir(home).is_ok_and(|mut entries| entries.next().is_none());
    let of_a_person = std::env::home_dir().is_some_and(|dir| dir.starts_with(home));
    if (paths.lock().exists() || empty) && home.parent().is_some() && !of_a_person {
        return Ok(());
    }
    Err(Problem::invalid(
        format!("{} is not the home of a local installation alone, so it is not removed", home.display()),
        "check ENVFORGE_HOME",
    ))
}

async fn remove(home: &Path) -> std::io::Result<()> {
    let mut attempts = 0;
    loop {
        match fs::remove_dir_all(home) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // A last writer of a log may have put a file into a directory that was just emptied.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty && attempts < 5 => {
                attempts += 1;
                sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn mounts_below(home: &Path) -> Vec<PathBuf> {
    let home = home.canonicalize().unwrap_or_else(|_| home.to_owned());
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|p| p.starts_with(&home) && *p != home)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::scratch::Scratch, *};

    #[test]
    fn a_directory_that_is_no_installation_is_never_removed() {
        let dir = Scratch::new();
        assert_eq!(refuse_foreign(&Paths::new(dir.path())), Ok(()), "an empty one may go");
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        assert!(refuse_foreign(&Paths::new(dir.path())).is_err());
        assert!(refuse_foreign(&Paths::new(Path::new("/"))).is_err());
        fs::write(dir.path().join("keeper.lock"), "").unwrap();
        assert_eq!(refuse_foreign(&Paths::new(dir.path())), Ok(()));
    }
}
