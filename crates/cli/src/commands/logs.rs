//! `logs`: read and follow, also while the workspace is asleep.

use crate::{
    args::{LogsArgs, words},
    context::Context,
    output::times,
    stream::{
        self,
        framing::{Frame, Stream},
    },
    wait::BackOff,
};
use envforge_api::{
    capability::Right,
    ids::WorkspaceId,
    names::Slug,
    problem::{Problem, ProblemKind},
    stream::{Control, LogLevel, LogLine, LogQuery},
    time::Timestamp,
};
use std::{process::ExitCode, time::Duration};

pub(super) async fn run(context: &Context, args: LogsArgs) -> Result<ExitCode, Problem> {
    let now = Timestamp::now();
    let point = |given: &Option<String>| given.as_deref().map(|given| times::parse_point(given, now)).transpose();
    let (since, until) = (point(&args.since)?, point(&args.until)?);
    let (ws, sources) = words::split(&args.words, &context.known().await?, true);
    let workspace = context.workspace(ws.as_deref()).await?;
    let mut query = LogQuery {
        sources,
        tail: args.lines,
        follow: args.follow,
        level: args.level.as_deref().and_then(level),
        since,
        until,
    };
    let mut pause = BackOff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut last = None;
        let ended = read(context, &workspace, &query, |line| {
            last = Some(line.time);
            if context.out.json { context.out.json_line(&line) } else { context.out.line(&text(&line)) }
        })
        .await;
        match ended {
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(_) if !context.out.has_reader() => return Ok(ExitCode::SUCCESS),
            Err(problem) if args.follow && problem.kind.retry_helps() => {
                if let Some(last) = last {
                    // What was shown is not shown again: go on after it.
                    query.since = Timestamp::from_nanosecond(last.as_nanosecond() + 1).ok();
                    query.tail = None;
                    pause = BackOff::new(Duration::from_millis(200), Duration::from_secs(5));
                }
                context.revive().await;
                tokio::time::sleep(pause.step()).await;
            }
            Err(problem) => return Err(problem),
        }
    }
}

/// Reads lines until the stream ends or the reader is gone.
async fn read(
    context: &Context,
    workspace: &Slug,
    query: &LogQuery,
    mut line: impl FnMut(LogLine),
) -> Result<(), Problem> {
    let grant = stream::grant(context, workspace, vec![Right::Logs], None).await?;
    let host = stream::host(context, &grant)?;
    let path = format!("/host/v1/workspaces/{}/logs", grant.workspace);
    let mut stream = Stream::open(&host, &path, Some(&Control::Logs(query.clone()))).await?;
    while context.out.has_reader() {
        match stream.next().await? {
            Frame::Stdout(bytes) => line(
                serde_json::from_slice(&bytes)
                    .map_err(|error| Problem::internal(format!("a log line could not be read: {error}")))?,
            ),
            Frame::Control(Control::Exit { code: 0 }) => break,
            Frame::Control(Control::Exit { code }) => {
                return Err(Problem::new(ProblemKind::Failed, format!("reading logs ended with status {code}"), ""));
            }
            Frame::Control(Control::Failed { problem }) => return Err(problem),
            Frame::Control(_) | Frame::Stderr(_) => {}
        }
    }
    stream.close().await;
    Ok(())
}

/// The messages of a query that does not follow.
///
/// # Errors
/// As the stream.
pub(super) async fn collect(
    context: &Context,
    workspace: &Slug,
    _id: &WorkspaceId,
    query: LogQuery,
) -> Result<Vec<String>, Problem> {
    let mut lines = Vec::new();
    read(context, workspace, &query, |line| lines.push(line.message)).await?;
    Ok(lines)
}

fn level(word: &str) -> Option<LogLevel> {
    match word {
        "debug" => Some(LogLevel::Debug),
        "info" => Some(LogLevel::Info),
        "warn" => Some(LogLevel::Warn),
        "error" => Some(LogLevel::Error),
        _ => None,
    }
}

/// One line for people.
fn text(line: &LogLine) -> String {
    let level = match line.level {
        LogLevel::Debug => "debug ",
        LogLevel::Info => "",
        LogLevel::Warn => "warn ",
        LogLevel::Error => "error ",
    };
    format!("{} {:<12} {level}{}", line.time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"), line.source, line.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_time_source_and_a_level_worth_a_look() {
        let line = LogLine {
            time: "2026-01-01T00:00:00.25Z".parse().expect("time"),
            source: "web".into(),
            level: LogLevel::Error,
            message: "no".into(),
        };
        assert_eq!(text(&line), "2026-01-01T00:00:00.250Z web          error no");
        assert_eq!(level("warn"), Some(LogLevel::Warn));
    }
}
