//! The stream API as its callers see it, over real sockets.

pub(in crate::daemon) mod host;

use super::env;
use crate::{daemon::hub::Workspace, supervise::runs::output_path};
use envforge_api::{
    capability::{Capability, Right, SigningKey},
    client::Client,
    command::ActReport,
    forward::Forwarded,
    ids::{AttachId, CommandId, HostId, WorkspaceId},
    problem::ProblemKind,
    secret::Secret,
    states::{CommandState, ShellState, Stated, Trouble},
    stream::{AttachStart, Control, LogQuery, ServiceEnv, TerminalSize, channel},
    time::Timestamp,
};
use host::{control, failed, hear, host, intent, say};
use std::{fs, sync::Arc, time::Duration};

const STREAMS: [(&str, Right); 6] = [
    ("attach", Right::Attach),
    ("exec", Right::Exec),
    ("logs", Right::Logs),
    ("runs/cmd_00000000000000000000000000/output", Right::Run),
    ("storage", Right::Storage),
    ("ports/web/connect", Right::Forward),
];

#[tokio::test]
async fn every_stream_is_refused_without_its_own_right_before_it_opens() {
    let host = host().await;
    let valid = host.capability(Right::ALL);
    let strangers = [
        (None, ProblemKind::Unauthenticated),
        (Some(Capability { expires_at: Timestamp::UNIX_EPOCH, ..valid.clone() }), ProblemKind::Unauthenticated),
        (Some(Capability { host: HostId::generate(), ..valid.clone() }), ProblemKind::NotFound),
        (Some(Capability { workspace: WorkspaceId::generate(), ..valid.clone() }), ProblemKind::NotFound),
    ];
    for (stream, right) in STREAMS {
        let path = host.path(stream);
        for (capability, kind) in &strangers {
            let refused = host.outside(capability.as_ref()).websocket(&path).await.expect_err("refused");
            assert_eq!(refused.kind, *kind, "{stream}");
        }
        let others: Vec<Right> = Right::ALL.iter().copied().filter(|other| *other != right).collect();
        let refused = host.outside(Some(&host.capability(&others))).websocket(&path).await.expect_err("refused");
        assert_eq!(refused.kind, ProblemKind::NotFound, "{stream}");
        host.outside(Some(&host.capability(&[right]))).websocket(&path).await.expect("admitted");
    }
    host.revoke(&valid);
    let refused = host.outside(Some(&valid)).websocket(&host.path("logs")).await.expect_err("revoked");
    assert_eq!(refused.kind, ProblemKind::Unauthenticated);
    let other_key = Secret::new(SigningKey::generate().expect("key").sign(&valid).expect("signed"));
    let client = Client::new(host.outside(None).endpoint().clone(), Some(other_key));
    let refused = client.websocket(&host.path("logs")).await.expect_err("not our key");
    assert_eq!(refused.kind, ProblemKind::Unauthenticated);
}

#[tokio::test]
async fn a_stream_ends_when_its_session_is_revoked_or_expires_unless_it_was_renewed() {
    let host = host().await;
    host.write_log("hello");
    let follow = || LogQuery { follow: true, ..LogQuery::default() };
    let kept = host.capability(&[Right::Logs]);
    let mut socket = host.logs(&host.outside(Some(&kept)), follow()).await;
    assert_eq!(control(&mut socket).await, Control::Started);
    assert!(hear(&mut socket).await.1.contains("hello"));
    let short = Capability { expires_at: Timestamp::now() + Duration::from_secs(2), ..host.capability(&[Right::Logs]) };
    let mut expiring = host.logs(&host.outside(Some(&short)), follow()).await;
    let mut renewed = host.logs(&host.outside(Some(&short)), follow()).await;
    let later = Capability { expires_at: kept.expires_at, session: AttachId::generate(), ..short.clone() };
    say(&mut renewed, &Control::Renew { token: host.key.sign(&later).expect("signed") }).await;
    for socket in [&mut expiring, &mut renewed] {
        assert_eq!(control(socket).await, Control::Started);
        hear(socket).await;
    }
    assert_eq!(failed(&mut expiring).await.kind, ProblemKind::Unauthenticated);
    host.write_log("after the first capability ended");
    assert!(hear(&mut renewed).await.1.contains("after the first"));
    hear(&mut socket).await;
    host.revoke(&kept);
    assert!(failed(&mut socket).await.message.contains("revoked"));
    host.revoke(&later);
    assert!(failed(&mut renewed).await.message.contains("revoked"));
}

#[tokio::test]
async fn a_port_is_told_and_carried_with_its_right_alone_and_not_while_the_runtime_sleeps() {
    let host = host().await;
    let client = host.outside(Some(&host.capability(&[Right::Forward])));
    for (target, kind) in [
        ("web", ProblemKind::Conflict),
        ("database", ProblemKind::Conflict),
        ("other", ProblemKind::Invalid),
        ("database?service=Other", ProblemKind::NotFound),
        ("..", ProblemKind::Usage),
    ] {
        let path = host.path(&format!("ports/{target}"));
        let refused = client.get::<Forwarded>(&path).await.expect_err(target);
        assert_eq!(refused.kind, kind, "{target}: {refused:?}");
        let others: Vec<Right> = Right::ALL.iter().copied().filter(|other| *other != Right::Forward).collect();
        let refused = host.outside(Some(&host.capability(&others))).get::<Forwarded>(&path).await.expect_err(target);
        assert_eq!(refused.kind, ProblemKind::NotFound, "{target}: {refused:?}");
    }
    let mut socket = client.websocket(&host.path("ports/web/connect")).await.expect("admitted");
    assert!(failed(&mut socket).await.message.contains("sleeps"));
}

#[tokio::test]
async fn attaching_tells_the_progress_of_preparation_and_why_it_failed() {
    let host = host().await;
    host.workspace.progress.send_replace("cloning web".into());
    let start = Control::Attach(AttachStart {
        size: TerminalSize { columns: 80, rows: 24 },
        term: "xterm".into(),
        command: vec![],
        git_identity: Default::default(),
        identity_follows: false,
    });
    let mut socket = host.inside().websocket(&host.path("attach")).await.expect("admitted");
    say(&mut socket, &start).await;
    assert_eq!(control(&mut socket).await, Control::Progress { message: "cloning web".into() });
    let trouble = Trouble::new("web cannot be cloned", "check its address");
    host.workspace.shell.send_replace(Stated::because(ShellState::Failed, Timestamp::now(), trouble));
    let problem = failed(&mut socket).await;
    assert_eq!((problem.message.as_str(), problem.hint.as_str()), ("web cannot be cloned", "check its address"));
}

#[tokio::test]
async fn the_output_of_a_run_is_told_from_its_beginning_and_ends_with_its_status() {
    let host = host().await;
    let id = CommandId::generate();
    let path = output_path(&host.hub.installation.workspace_dir(&host.workspace.id), &id);
    let mut socket = host.inside().websocket(&host.path(&format!("runs/{id}/output"))).await.expect("admitted");
    assert_eq!(control(&mut socket).await, Control::Started);
    fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
    fs::write(&path, "{\"out\":\"one\\n\"}\n{\"err\":\"two\\n\"}\n{\"exit\":3}\n").expect("write");
    assert_eq!(hear(&mut socket).await, (channel::STDOUT, "one\n".into()));
    assert_eq!(hear(&mut socket).await, (channel::STDERR, "two\n".into()));
    assert_eq!(control(&mut socket).await, Control::Exit { code: 3 });
    let lost = CommandId::generate();
    let reason = Some("interrupted by a restart".to_owned());
    let report =
        ActReport { id: lost.clone(), state: CommandState::Interrupted, exit_code: None, reason, answer: None };
    host.hub.ledger().change(|host| drop(host.finished.insert(lost.clone(), report))).expect("ledger");
    let mut socket = host.inside().websocket(&host.path(&format!("runs/{lost}/output"))).await.expect("admitted");
    assert_eq!(control(&mut socket).await, Control::Started);
    assert_eq!(failed(&mut socket).await.message, "interrupted by a restart");
}

#[tokio::test]
async fn a_revealed_environment_needs_the_right_for_that_very_service() {
    let host = host().await;
    let service = "web".parse().expect("name");
    let path = env::path_of(&host.hub.installation.workspace_dir(&host.workspace.id), &service);
    fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
    fs::write(&path, r#"{"variables":[{"name":"KEY","value":"s3cret","shown":"***"}]}"#).expect("write");
    let (masked, revealed) = (host.path("env?service=web"), host.path("env?service=web&reveal=true"));
    let get =
        async |client: &Client, path: &str| client.get::<ServiceEnv>(path).await.map(|env| env.variables[0].1.clone());
    let may_see = host.outside(Some(&host.capability(&[Right::Env])));
    assert_eq!(get(&may_see, &masked).await.expect("allowed"), "***");
    assert_eq!(get(&may_see, &revealed).await.expect_err("refused").kind, ProblemKind::NotFound);
    let only = |name: &str| Capability { service: name.parse().ok(), ..host.capability(&[Right::Reveal]) };
    assert_eq!(get(&host.outside(Some(&only("web"))), &revealed).await.expect("allowed"), "s3cret");
    assert_eq!(
        get(&host.outside(Some(&only("api"))), &revealed).await.expect_err("refused").kind,
        ProblemKind::NotFound
    );
    assert_eq!(get(&host.inside(), &revealed).await.expect("allowed"), "s3cret");
    let other = host.inside().get::<ServiceEnv>(&masked.replace("env?service=web", "env?service=no")).await;
    let other = other.expect_err("missing");
    assert_eq!((other.kind, other.candidates), (ProblemKind::Invalid, vec!["web".to_owned()]));
}

#[tokio::test]
async fn a_workspace_reaches_itself_and_the_public_api_in_its_own_name_and_nothing_else() {
    use hyper::{Method, body::Bytes};
    let host = host().await;
    let inside = host.inside().with_header("x-other", "smuggled".into());
    let raw = async |client: &Client, method, path: &str| {
        let (status, body) = client.raw(method, path, Bytes::new()).await.expect("an answer");
        (status, String::from_utf8(body.to_vec()).expect("text"))
    };
    let asked = raw(&inside, Method::POST, "/v1/workspaces/links/wake?x=1").await;
    let expected = format!("POST /v1/workspaces/links/wake?x=1 Bearer host-token {} ", host.workspace.id);
    assert_eq!(asked, (200, expected));
    for hidden in ["/v1/host/sync", "/v1/%68ost/sync", "/v2/x", "/"] {
        assert_eq!(raw(&inside, Method::POST, hidden).await.0, 404, "{hidden}");
    }
    assert_eq!(raw(&host.outside(None), Method::GET, "/v1/workspaces").await.0, 404);
    let other = Arc::new(Workspace::new(4, intent()));
    host.hub.insert(Arc::clone(&other));
    for (stream, _) in STREAMS {
        let path = format!("/host/v1/workspaces/{}/{stream}", other.id);
        assert_eq!(inside.websocket(&path).await.expect_err("not its own").kind, ProblemKind::NotFound);
    }
    let mode = |path: &str| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(host.hub.installation.run.join(path)).expect("a socket").permissions().mode() & 0o777
    };
    assert_eq!((mode("host.sock"), mode("w3/in/host.sock")), (0o666, 0o600));
}
