//! Logs over several sources, files and rotations.

use super::{
    check,
    read::{Filter, history, sources},
    tail::Followed,
};
use crate::supervise::{
    logs::{Logs, path_of},
    redact::Redactor,
};
use envforge_api::{
    stream::{LogLevel, LogLine, LogQuery},
    time::Timestamp,
};
use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("a time")
}

fn append(path: &Path, source: &str, seconds: impl IntoIterator<Item = i64>) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("file");
    for second in seconds {
        let level = if second % 10 == 0 { LogLevel::Error } else { LogLevel::Info };
        let line = LogLine { time: time(second), source: source.into(), level, message: format!("{source} {second}") };
        writeln!(file, "{}", serde_json::to_string(&line).expect("json")).expect("write");
    }
}

/// `backend` in two files, `backend.mailer` and `web` in one each.
fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    append(&PathBuf::from(format!("{}.1", path_of(dir.path(), "backend").display())), "backend", [1, 4, 10]);
    append(&path_of(dir.path(), "backend"), "backend", [12, 15]);
    append(&path_of(dir.path(), "backend.mailer"), "backend.mailer", [3, 14, 20]);
    append(&path_of(dir.path(), "web"), "web", [2, 11]);
    dir
}

fn shown(dir: &Path, query: &LogQuery) -> Vec<String> {
    let all = RefCell::new(Vec::new());
    let take = |batch: Vec<LogLine>| {
        all.borrow_mut().extend(batch.into_iter().map(|line| line.message));
        true
    };
    history(dir, &Filter::of(query), query.tail, &take).expect("readable");
    all.into_inner()
}

#[test]
fn lines_of_all_sources_and_rotated_files_come_in_the_order_of_time() {
    let dir = sample();
    let names: Vec<_> = sources(dir.path()).expect("readable").into_iter().collect();
    assert_eq!(names, ["backend", "backend.mailer", "web"]);
    let seconds: Vec<i64> = shown(dir.path(), &LogQuery::default())
        .iter()
        .map(|line| line.rsplit(' ').next().expect("a word").parse().expect("a number"))
        .collect();
    assert_eq!(seconds, [1, 2, 3, 4, 10, 11, 12, 14, 15, 20]);
}

#[test]
fn a_source_is_only_itself_and_filters_apply_before_the_tail() {
    let dir = sample();
    let only = LogQuery { sources: vec!["backend".into()], ..LogQuery::default() };
    assert_eq!(shown(dir.path(), &only).len(), 5);
    let bad = LogQuery { level: Some(LogLevel::Warn), ..LogQuery::default() };
    assert_eq!(shown(dir.path(), &bad), ["backend 10", "backend.mailer 20"]);
    assert_eq!(shown(dir.path(), &LogQuery { tail: Some(1), ..bad.clone() }), ["backend.mailer 20"]);
    let between = LogQuery { since: Some(time(10)), until: Some(time(12)), ..LogQuery::default() };
    assert_eq!(shown(dir.path(), &between), ["backend 10", "web 11", "backend 12"]);
}

#[test]
fn a_tail_is_the_last_lines_of_all_sources_together_whatever_file_they_are_in() {
    let dir = sample();
    let last = |count| shown(dir.path(), &LogQuery { tail: Some(count), ..LogQuery::default() });
    assert_eq!(last(3), ["backend.mailer 14", "backend 15", "backend.mailer 20"]);
    assert_eq!(last(6)[0], "backend 10");
    assert_eq!(last(0), Vec::<String>::new());
    assert_eq!(last(100).len(), 10);
}

#[test]
fn a_line_that_was_cut_short_is_left_out_until_it_is_whole() {
    let dir = sample();
    let path = path_of(dir.path(), "web");
    let line = LogLine { time: time(30), source: "web".into(), level: LogLevel::Info, message: "whole".into() };
    let text = serde_json::to_string(&line).expect("json");
    let (head, rest) = text.split_at(10);
    let mut file = fs::OpenOptions::new().append(true).open(&path).expect("file");
    file.write_all(head.as_bytes()).expect("write");
    let ends = history(dir.path(), &Filter::default(), Some(0), &|_| true).expect("readable");
    let mut followed = Followed::new(dir.path().into(), Filter::default(), ends);
    assert_eq!(followed.read().expect("readable"), []);
    writeln!(file, "{rest}").expect("write");
    assert_eq!(followed.read().expect("readable"), [line]);
}

#[test]
fn following_neither_loses_nor_repeats_a_line_over_rotations_and_new_sources() {
    let dir = tempfile::tempdir().expect("directory");
    let logs = Logs::new(dir.path().into(), Redactor::default());
    // Large lines: the files are rotated several times.
    let filling = "x".repeat(16_000);
    let write = |n: usize| logs.write(if n < 300 { "web" } else { "late" }, LogLevel::Info, &format!("{n} {filling}"));
    (0..50).for_each(write);
    let mut seen = 0;
    let mut expect = |lines: Vec<LogLine>| {
        for line in lines {
            assert!(line.message.starts_with(&format!("{seen} ")), "line {seen}");
            seen += 1;
        }
        seen
    };
    let all = RefCell::new(Vec::new());
    let take = |batch| {
        all.borrow_mut().extend::<Vec<LogLine>>(batch);
        true
    };
    let ends = history(dir.path(), &Filter::default(), None, &take).expect("readable");
    assert_eq!(expect(all.into_inner()), 50);
    let mut followed = Followed::new(dir.path().into(), Filter::default(), ends);
    for n in 50..1200 {
        write(n);
        if n % 7 == 0 {
            expect(followed.read().expect("readable"));
        }
    }
    while expect(followed.read().expect("readable")) < 1200 {}
    assert!(fs::metadata(format!("{}.1", path_of(dir.path(), "late").display())).is_ok(), "nothing was rotated");
}

#[test]
fn an_unknown_source_is_refused_with_those_that_wrote_something() {
    let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    let query = |name: &str| LogQuery { sources: vec![name.into()], ..LogQuery::default() };
    let (written, expected) = (set(&["backend", "backend.mailer"]), set(&["web"]));
    assert_eq!(check(&query("web"), &written, &expected), Ok(()));
    assert_eq!(check(&query("backend.mailer"), &written, &expected), Ok(()));
    let problem = check(&query("backnd"), &written, &expected).expect_err("unknown");
    assert_eq!(problem.candidates, ["backend", "backend.mailer"]);
    assert!(problem.message.contains("backnd"), "{}", problem.message);
}
