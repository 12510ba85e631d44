//! A control plane and a host for tests, in this process on a unix socket: they answer what a test puts there.

use crate::{
    args::Cli,
    commands,
    context::Context,
    output::{Output, problem_text},
    settings::{Settings, Target},
};
use axum::{
    Router,
    body::Bytes,
    extract::{
        FromRequestParts, Request, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use clap::Parser;
use envforge_api::client::Endpoint;
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
};

/// What one route answers.
#[derive(Debug, Clone)]
enum Answer {
    /// Status and JSON.
    Json(u16, Value),
    /// A WebSocket that sends these messages, each a channel with its octets.
    Stream(Vec<(u8, Vec<u8>)>),
}

#[derive(Debug, Default)]
struct Script {
    /// Route (`GET /path?query`) and its answers; the last one stays.
    routes: Vec<(String, VecDeque<Answer>)>,
    /// Requests as they came: route and body.
    heard: Vec<(String, Value)>,
}

/// The server; ends with the test.
#[derive(Debug)]
pub(crate) struct Fake {
    directory: tempfile::TempDir,
    script: Arc<Mutex<Script>>,
    task: tokio::task::JoinHandle<()>,
}

/// What a command line came to.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Exit status.
    pub(crate) code: u8,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Fake {
    /// Starts one without any answers.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let listener = tokio::net::UnixListener::bind(directory.path().join("s")).expect("bound");
        let script = Arc::new(Mutex::new(Script::default()));
        let app = Router::new().fallback(handle).with_state(script.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
        Self { directory, script, task }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// Answers a route with JSON; several answers to one route come in turn.
    pub(crate) fn on(&self, route: &str, body: Value) -> &Self {
        self.add(route, Answer::Json(200, body))
    }

    /// Answers a route with a problem.
    pub(crate) fn refuse(&self, route: &str, status: u16, kind: &str, message: &str) -> &Self {
        let error = json!({"kind": kind, "message": message, "hint": ""});
        self.add(route, Answer::Json(status, json!({ "error": error })))
    }

    /// Answers a route with a stream.
    pub(crate) fn stream(&self, route: &str, messages: &[(u8, &str)]) -> &Self {
        let messages = messages.iter().map(|(channel, text)| (*channel, text.as_bytes().to_vec())).collect();
        self.add(route, Answer::Stream(messages))
    }

    fn add(&self, route: &str, answer: Answer) -> &Self {
        let mut script = self.script.lock().expect("not poisoned");
        match script.routes.iter_mut().find(|(known, _)| known == route) {
            Some((_, answers)) => answers.push_back(answer),
            None => script.routes.push((route.to_owned(), VecDeque::from([answer]))),
        }
        drop(script);
        self
    }

    /// The grant that opens this server as a host.
    pub(crate) fn grant(&self) -> Value {
        json!({
            "id": "ws_00000000000000000000000000", "workspace": "a", "created": false,
            "wake": "cmd_00000000000000000000000000",
            "grant": {
                "host": "host_00000000000000000000000000", "workspace": "ws_00000000000000000000000000",
                "local_socket": self.socket(), "token": "t", "expires_at": "2199-01-01T00:00:00Z",
            },
        })
    }

    /// Bodies of the requests to a route.
    pub(crate) fn heard(&self, route: &str) -> Vec<Value> {
        let script = self.script.lock().expect("not poisoned");
        script.heard.iter().filter(|(known, _)| known == route).map(|(_, body)| body.clone()).collect()
    }

    /// Runs a command line against this server, with nobody at a terminal.
    pub(crate) async fn run(&self, line: &str) -> Ran {
        let cli = Cli::try_parse_from(std::iter::once("envforge").chain(line.split_whitespace())).expect("readable");
        let settings = Settings {
            target: Target::Remote { endpoint: Endpoint::Unix(self.socket()), token: None },
            home: self.directory.path().join("home"),
            project: None,
            cache: Some(self.directory.path().join("cache")),
        };
        let context = Context::new(Output::new(cli.json), settings);
        let passes_on = matches!(cli.command, crate::Command::Exec(_) | crate::Command::Run(_));
        let (code, problem) = match commands::dispatch(&context, cli.command).await {
            Ok(code) => (number(code), String::new()),
            Err(problem) => (crate::failure_code(problem.kind, passes_on), problem_text(&problem)),
        };
        let captured = context.out.captured.lock().expect("not poisoned");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code, stdout: text(&captured.0), stderr: text(&captured.1) + &problem }
    }

    /// Stops answering.
    pub(crate) async fn stop(&mut self) {
        self.task.abort();
        // Aborted is what was wanted.
        let _ = (&mut self.task).await;
    }
}

/// `ExitCode` does not tell its number but compares by its form.
fn number(code: ExitCode) -> u8 {
    let form = format!("{code:?}");
    (0..=255).find(|n| format!("{:?}", ExitCode::from(*n)) == form).expect("an exit status")
}

async fn handle(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let route = format!("{} {}", request.method(), request.uri());
    let (mut parts, body) = request.into_parts();
    let answer = {
        let mut script = script.lock().expect("not poisoned");
        script
            .routes
            .iter_mut()
            .find(|(known, _)| *known == route)
            .and_then(|(_, answers)| if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() })
    };
    match answer {
        Some(Answer::Json(status, value)) => {
            let bytes: Bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
            let heard = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            script.lock().expect("not poisoned").heard.push((route, heard));
            (StatusCode::from_u16(status).expect("a status"), axum::Json(value)).into_response()
        }
        Some(Answer::Stream(messages)) => {
            let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await.expect("a WebSocket");
            let waits = !route.contains("/runs/");
            upgrade.on_upgrade(move |socket| play(socket, messages, waits, script, route))
        }
        None => {
            let error = json!({"kind": "not_found", "message": format!("nothing at {route}"), "hint": ""});
            (StatusCode::NOT_FOUND, axum::Json(json!({ "error": error }))).into_response()
        }
    }
}

async fn play(
    mut socket: WebSocket,
    messages: Vec<(u8, Vec<u8>)>,
    waits: bool,
    script: Arc<Mutex<Script>>,
    route: String,
) {
    if waits {
        let first = socket.recv().await.expect("a first message").expect("readable").into_data();
        let heard = serde_json::from_slice(&first[1..]).expect("a control message");
        script.lock().expect("not poisoned").heard.push((route, heard));
    }
    for (channel, payload) in messages {
        let mut bytes = vec![channel];
        bytes.extend(payload);
        socket.send(Message::Binary(bytes.into())).await.expect("sent");
    }
    // The other side closes; what it still sends is of no interest.
    while let Some(Ok(_)) = socket.recv().await {}
}
