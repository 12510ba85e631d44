//! Output of `envforge run`: followed from the file the supervisor writes, from its beginning to its exit frame.

use super::{
    channel::{Cut, In, Out},
    routes::Api,
};
use crate::{
    daemon::hub::Workspace,
    supervise::{protocol::RunFrame, runs::output_path},
};
use envforge_api::{
    command::ActReport,
    ids::CommandId,
    problem::{Problem, ProblemKind},
    states::CommandState,
    stream::{Control, channel},
};
use std::{io, path::PathBuf, time::Duration};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, BufReader},
    time::Instant,
};

/// Pauses between looks at a file that did not grow: short at first, since a run that just began says more at once.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// A run that nothing on this host knows and that says nothing for so long will not say anything.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Octets read at once.
const CHUNK: usize = 64 << 10;

pub(super) async fn follow(
    api: &Api,
    workspace: &Workspace,
    command: &CommandId,
    out: &Out,
    input: &mut In<'_>,
) -> Result<i32, Cut> {
    tokio::select! {
        ended = read(api, workspace, command, out) => ended,
        gone = input.until_gone() => Err(gone),
    }
}

async fn read(api: &Api, workspace: &Workspace, command: &CommandId, out: &Out) -> Result<i32, Cut> {
    out.control(&Control::Started).await?;
    let mut frames = Frames::new(output_path(&api.hub.installation.workspace_dir(&workspace.id), command));
    let (mut pause, mut quiet_since) = (PAUSES.0, Instant::now());
    loop {
        // Asked before the file is read: what was written before the end is then read for certain.
        let taken = api.hub.has_seen(command);
        let (finished, leased) = {
            let ledger = api.hub.ledger();
            (ledger.host.finished.get(command).cloned(), ledger.host.running.contains_key(command))
        };
        // One that was taken, and of which nothing is left, has ended and is recorded.
        let over = taken && !leased && finished.is_none();
        let mut grew = false;
        while let Some(frame) = frames.next().await.map_err(|e| unreadable(&e))? {
            grew = true;
            match frame {
                RunFrame::Out(text) => out.data(channel::STDOUT, text.as_bytes()).await?,
                RunFrame::Err(text) => out.data(channel::STDERR, text.as_bytes()).await?,
                RunFrame::Exit(code) => return Ok(code),
            }
        }
        if let Some(report) = finished.filter(|report| report.state.is_final()) {
            return outcome(report);
        }
        if over {
            return Err(Problem::not_found(format!("run {command}")).into());
        }
        if grew {
            (pause, quiet_since) = (PAUSES.0, Instant::now());
        } else if quiet_since.elapsed() > FORGOTTEN && !is_known(api, workspace, command) {
            return Err(Problem::not_found(format!("run {command}")).into());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

fn unreadable(error: &io::Error) -> Problem {
    Problem::new(ProblemKind::Failed, format!("the run's output cannot be read: {error}"), "run the command again")
}

/// The end of a run whose output does not say it.
fn outcome(report: ActReport) -> Result<i32, Cut> {
    match (report.state, report.exit_code) {
        (_, Some(code)) => Ok(code),
        (CommandState::Succeeded, None) => Ok(0),
        (state, None) => {
            let reason = report.reason.unwrap_or_else(|| format!("the run ended: {state}"));
            let hint = "`envforge logs` and `envforge status` show what happened; then run it again";
            Err(Problem::new(ProblemKind::Failed, reason, hint).into())
        }
    }
}

/// Whether this host still has to do with the run.
fn is_known(api: &Api, workspace: &Workspace, command: &CommandId) -> bool {
    let leased = api.hub.ledger().host.running.contains_key(command);
    leased
        || workspace
            .runtime
            .borrow()
            .snapshot
            .as_ref()
            .is_some_and(|snapshot| snapshot.runs.iter().any(|run| &run.id == command && !run.state.is_final()))
}

/// Whole frames of a file that grows.
#[derive(Debug)]
struct Frames {
    path: PathBuf,
    file: Option<BufReader<File>>,
    line: Vec<u8>,
}

impl Frames {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, line: Vec::new() }
    }

    /// The next frame that is there now.
    async fn next(&mut self) -> io::Result<Option<RunFrame>> {
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(&self.path).await {
                Ok(file) => self.file.insert(BufReader::with_capacity(CHUNK, file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        loop {
            // What there is of a line that is being written stays until the rest comes.
            file.read_until(b'\n', &mut self.line).await?;
            if self.line.last() != Some(&b'\n') {
                return Ok(None);
            }
            let frame = serde_json::from_slice(&self.line);
            self.line.clear();
            // A line that a full disk cut short is left out: what follows is still told.
            if let Ok(frame) = frame {
                return Ok(Some(frame));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn frames_are_read_whole_as_the_file_appears_and_grows() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("x.out");
        let mut frames = Frames::new(path.clone());
        assert_eq!(frames.next().await.expect("read"), None);
        let mut file = std::fs::File::create(&path).expect("file");
        file.write_all(b"{\"out\":\"a\\n\"}\ncut short\n{\"exit\":").expect("write");
        assert_eq!(frames.next().await.expect("read"), Some(RunFrame::Out("a\n".into())));
        assert_eq!(frames.next().await.expect("read"), None);
        file.write_all(b"3}\n").expect("write");
        assert_eq!(frames.next().await.expect("read"), Some(RunFrame::Exit(3)));
    }
}
