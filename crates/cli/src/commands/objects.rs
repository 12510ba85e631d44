//! `s3`: objects of a workspace, listed, read, written and removed; asleep as well, without waking anything.

use super::{resources, services::service};
use crate::{
    args::{ClientArgs, objects::S3Args},
    context::Context,
    output::tables,
    stream::{
        self,
        framing::{Frame, Stream},
    },
};
use envforge_api::{
    capability::Right,
    problem::{Problem, ProblemKind},
    resource::ResourceKind,
    storage::{ObjectAct, ObjectList, ObjectStart},
    stream::Control,
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Octets sent at once.
const AT_ONCE: usize = 256 << 10;

/// What is done, and with which file of this machine; `-` is a standard stream.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    act: ObjectAct,
    file: PathBuf,
}

/// Reads `[WS] [ls [PREFIX] | get KEY [FILE] | put FILE [KEY] | rm KEY]`.
fn read(words: &[String]) -> Result<(Option<&str>, Asked), Problem> {
    let usage = |message: &str| {
        let hint = "envforge s3 [WS] [ls [PREFIX] | get KEY [FILE] | put FILE [KEY] | rm KEY]";
        Problem::new(ProblemKind::Usage, message, hint)
    };
    let is_act = |word: &String| matches!(word.as_str(), "ls" | "get" | "put" | "rm");
    let (ws, words) = match words {
        [first, rest @ ..] if !is_act(first) => (Some(first.as_str()), rest),
        words => (None, words),
    };
    // The last part of a key or path, which is the name of a file here.
    let name = |of: &str| {
        let last = of.rsplit('/').next().unwrap_or_default();
        let plain = !matches!(last, "" | "." | "..");
        plain.then(|| last.to_owned()).ok_or_else(|| usage(&format!("`{of}` names no file: name one")))
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let key = |key: &str| {
        if key.is_empty() { Err(usage("a key cannot be empty")) } else { Ok(key.to_owned()) }
    };
    let (act, file) = match *words.as_slice() {
        [] | ["ls"] => (ObjectAct::List { prefix: String::new() }, String::new()),
        ["ls", prefix] => (ObjectAct::List { prefix: prefix.to_owned() }, String::new()),
        ["get", of] => (ObjectAct::Get { key: key(of)? }, name(of)?),
        ["get", of, file] => (ObjectAct::Get { key: key(of)? }, file.to_owned()),
        ["put", file] => (ObjectAct::Put { key: name(file)? }, file.to_owned()),
        ["put", file, of] => (ObjectAct::Put { key: key(of)? }, file.to_owned()),
        ["rm", of] => (ObjectAct::Remove { key: key(of)? }, String::new()),
        _ => return Err(usage("what is to be done with the storage?")),
    };
    Ok((ws, Asked { act, file: file.into() }))
}

#[derive(Debug, Serialize)]
struct Done<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

pub(super) async fn run(context: &Context, args: S3Args) -> Result<ExitCode, Problem> {
    if !args.argv.is_empty() {
        let ([] | [_]) = args.words.as_slice() else {
            return Err(Problem::new(ProblemKind::Usage, "an act and arguments of a client cannot go together", ""));
        };
        let client = ClientArgs { ws: args.words.into_iter().next(), service: args.service, argv: args.argv };
        return resources::open(context, &[ResourceKind::Storage], client).await;
    }
    let (ws, Asked { act, file }) = read(&args.words)?;
    let owner = args.service.as_deref().map(service).transpose()?;
    let workspace = context.workspace(ws).await?;
    // A file that cannot be read is no reason to begin.
    let source = if matches!(act, ObjectAct::Put { .. }) { Some(open(&file).await?) } else { None };
    let grant = stream::grant(context, &workspace, vec![Right::Storage], None).await?;
    let host = stream::host(context, &grant)?;
    let start = Control::Storage(ObjectStart { service: owner, act: act.clone() });
    let path = format!("/host/v1/workspaces/{}/storage", grant.workspace);
    let mut stream = Stream::open(&host, &path, Some(&start)).await?;
    match (&act, source) {
        (ObjectAct::List { .. }, _) => {
            let mut json = Vec::new();
            receive(&mut stream, async |octets| {
                json.extend_from_slice(octets);
                Ok(())
            })
            .await?;
            let list: ObjectList =
                serde_json::from_slice(&json).map_err(|error| Problem::internal(format!("a listing: {error}")))?;
            context.out.data(&list, || tables::objects(&list));
            if !context.out.json {
                context.out.say(&format!("bucket {}, in the workspace at {}", list.bucket, list.endpoint));
            }
        }
        (ObjectAct::Get { key }, _) => {
            let size = get(context, &mut stream, &file).await?;
            if file.as_os_str() != "-" {
                context.out.data(&Done { key, size: Some(size) }, || file.display().to_string());
            }
        }
        (ObjectAct::Put { key }, source) => {
            let size = put(&mut stream, source).await?;
            context.out.data(&Done { key, size: Some(size) }, || key.clone());
        }
        (ObjectAct::Remove { key }, _) => {
            receive(&mut stream, async |_| Ok(())).await?;
            context.out.data(&Done { key, size: None }, || format!("removed {key}"));
        }
    }
    stream.close().await;
    Ok(ExitCode::SUCCESS)
}

fn failed(doing: &str, file: &Path, error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Failed, format!("cannot {doing} {}: {error}", file.display()), "")
}

type Source = Box<dyn AsyncRead + Unpin + Send>;

async fn open(file: &Path) -> Result<Source, Problem> {
    if file.as_os_str() == "-" {
        return Ok(Box::new(tokio::io::stdin()));
    }
    let failed = |error: std::io::Error| failed("read", file, &error);
    let opened = tokio::fs::File::open(file).await.map_err(failed)?;
    if opened.metadata().await.map_err(failed)?.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(Box::new(opened))
}

/// Passes octets on to the stream's good end.
async fn receive(stream: &mut Stream, mut take: impl AsyncFnMut(&[u8]) -> Result<(), Problem>) -> Result<(), Problem> {
    loop {
        match stream.next().await? {
            Frame::Stdout(octets) => take(&octets).await?,
            Frame::Control(Control::Exit { code: 0 }) => return Ok(()),
            Frame::Control(Control::Failed { problem }) => return Err(problem),
            Frame::Control(_) | Frame::Stderr(_) => {}
        }
    }
}

/// Writes an object to a file that appears when it is whole, or to standard output; its size.
async fn get(context: &Context, stream: &mut Stream, file: &Path) -> Result<u64, Problem> {
    let mut size = 0;
    if file.as_os_str() == "-" {
        receive(stream, async |octets| {
            size += octets.len() as u64;
            context.out.stdout(octets);
            Ok(())
        })
        .await?;
        return Ok(size);
    }
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let new = file.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let failed = |error: std::io::Error| failed("write", file, &error);
    let got = async {
        let mut to = tokio::fs::OpenOptions::new().write(true).create_new(true).open(&new).await.map_err(failed)?;
        receive(stream, async |octets| {
            size += octets.len() as u64;
            to.write_all(octets).await.map_err(failed)
        })
        .await?;
        to.flush().await.map_err(failed)?;
        tokio::fs::rename(&new, file).await.map_err(failed)
    };
    let got = got.await;
    if got.is_err() {
        // The half of one is of no use.
        let _ = tokio::fs::remove_file(&new).await;
    }
    got.map(|()| size)
}

/// Sends a file; its size.
async fn put(stream: &mut Stream, source: Option<Source>) -> Result<u64, Problem> {
    // What is refused is refused before anything is sent.
    loop {
        match stream.next().await? {
            Frame::Control(Control::Started) => break,
            Frame::Control(Control::Failed { problem }) => return Err(problem),
            Frame::Control(_) | Frame::Stdout(_) | Frame::Stderr(_) => {}
        }
    }
    let Some(mut source) = source else { return Ok(0) };
    let mut octets = vec![0; AT_ONCE];
    let mut size = 0;
    loop {
        let read = source.read(&mut octets).await;
        let read = read.map_err(|error| Problem::new(ProblemKind::Failed, format!("cannot read on: {error}"), ""))?;
        let sent = stream.input(&octets[..read]).await;
        size += read as u64;
        if read == 0 || sent.is_err() {
            // Where it broke off, the host's last message says why.
            receive(stream, async |_| Ok(())).await?;
            return sent.map(|()| size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_may_follow_a_workspace_and_a_file_is_named_as_the_object() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let get = |key: &str| ObjectAct::Get { key: key.into() };
        let put = |key: &str| ObjectAct::Put { key: key.into() };
        let list = |prefix: &str| ObjectAct::List { prefix: prefix.into() };
        for (given, ws, act, file) in [
            ("", None, list(""), ""),
            ("main", Some("main"), list(""), ""),
            ("ls a/", None, list("a/"), ""),
            ("main get a/b", Some("main"), get("a/b"), "b"),
            ("get a/b -", None, get("a/b"), "-"),
            ("get .. out", None, get(".."), "out"),
            ("put d/f", None, put("f"), "d/f"),
            ("main put - a/b", Some("main"), put("a/b"), "-"),
            ("rm a", None, ObjectAct::Remove { key: "a".into() }, ""),
        ] {
            let words = words(given);
            let (read_ws, asked) = read(&words).expect(given);
            assert_eq!((read_ws, asked), (ws, Asked { act, file: file.into() }), "{given}");
        }
        for bad in ["get", "main get", "get a/..", "get a/", "put", "put ..", "rm", "main other", "rm a b"] {
            assert_eq!(read(&words(bad)).expect_err(bad).kind, ProblemKind::Usage, "{bad}");
        }
    }
}
