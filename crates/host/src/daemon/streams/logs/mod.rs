//! Logs: what was written, and what is written from now on, of several sources in the order of time.

mod read;
mod tail;
#[cfg(test)]
mod tests;

use super::{
    channel::{Cut, In, Out},
    routes::Api,
};
use crate::daemon::hub::Workspace;
use envforge_api::{
    problem::Problem,
    resource::ResourceKind,
    stream::{Control, LogLine, LogQuery, channel},
    time::Timestamp,
};
use read::Filter;
use std::{collections::BTreeSet, io, path::Path, time::Duration};
use tail::Followed;
use tokio::sync::mpsc;

/// Time between looks at files that may have grown.
const POLL: Duration = Duration::from_millis(200);
/// Batches of lines that are read ahead of a client.
const AHEAD: usize = 2;

pub(super) async fn show(api: &Api, workspace: &Workspace, out: &Out, input: &mut In<'_>) -> Result<i32, Cut> {
    let Control::Logs(query) = input.start().await? else {
        return Err(Problem::invalid("this is for logs", "is this an EnvForge client?").into());
    };
    let dir = api.hub.installation.workspace_dir(&workspace.id).join("logs");
    let written = read::sources(&dir).map_err(|e| unreadable(&e))?;
    check(&query, &written, &expected(workspace))?;
    out.control(&Control::Started).await?;
    tokio::select! {
        shown = stream(&dir, query, out) => shown,
        gone = input.until_gone() => Err(gone),
    }
}

fn unreadable(error: &io::Error) -> Problem {
    Problem::internal(format!("the logs cannot be read: {error}"))
}

/// Sources that may write one day, although they have not yet.
fn expected(workspace: &Workspace) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["setup", "system"].map(str::to_owned).into();
    names.extend(ResourceKind::ALL.iter().map(|kind| kind.as_str().to_owned()));
    names.extend(workspace.intent.borrow().spec.services.iter().map(|service| service.name.to_string()));
    if let Some(snapshot) = &workspace.runtime.borrow().snapshot {
        names.extend(snapshot.services.iter().map(|service| service.name.clone()));
    }
    names
}

/// Refuses a source that nothing writes, with those that do.
fn check(query: &LogQuery, written: &BTreeSet<String>, expected: &BTreeSet<String>) -> Result<(), Problem> {
    let unknown = query.sources.iter().find(|name| !written.contains(*name) && !expected.contains(*name));
    let Some(name) = unknown else { return Ok(()) };
    let mut problem = Problem::not_found(format!("log source `{name}`"));
    problem.hint = match written.iter().map(String::as_str).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "nothing was written yet: wake the runtime once".into(),
        names => format!("these wrote something: {names}"),
    };
    Err(problem.with_candidates(written.iter().cloned().collect()))
}

async fn stream(dir: &Path, query: LogQuery, out: &Out) -> Result<i32, Cut> {
    let follow = query.follow;
    let filter = Filter::of(&query);
    let (send, mut batches) = mpsc::channel(AHEAD);
    let (from, tail) = (dir.to_owned(), query.tail);
    let wanted = filter.clone();
    // Ends with the files, or with its next batch once nobody takes it.
    let reading =
        tokio::task::spawn_blocking(move || read::history(&from, &wanted, tail, &|b| send.blocking_send(b).is_ok()));
    while let Some(batch) = batches.recv().await {
        tell(out, &batch).await?;
    }
    let ends = reading.await.map_err(|_| Problem::internal("reading the logs was cut short"))?;
    let ends = ends.map_err(|e| unreadable(&e))?;
    if !follow {
        return Ok(0);
    }
    let mut followed = Followed::new(dir.to_owned(), filter.clone(), ends);
    loop {
        let more = tokio::task::spawn_blocking(move || {
            let lines = followed.read();
            (followed, lines)
        });
        let (back, lines) = more.await.map_err(|_| Problem::internal("reading the logs was cut short"))?;
        followed = back;
        let lines = lines.map_err(|e| unreadable(&e))?;
        if !lines.is_empty() {
            tell(out, &lines).await?;
        } else if filter.is_over(Timestamp::now()) {
            return Ok(0);
        } else {
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn tell(out: &Out, lines: &[LogLine]) -> Result<(), Cut> {
    for line in lines {
        let bytes = serde_json::to_vec(line).map_err(|e| Problem::internal(e.to_string()))?;
        out.feed(channel::STDOUT, &bytes).await?;
    }
    out.flush().await
}
