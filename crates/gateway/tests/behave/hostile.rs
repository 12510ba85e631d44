//! Visitors and services that stall, reset, or lie about lengths harm themselves alone; no trick of framing or naming
//! leads past the check.

use crate::support::{Gateway, mirror, read_head, read_to_end, service};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn is_served(gateway: &Gateway) {
    let answer = gateway.exchange(gateway.head("GET /ok", "connection: close\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_that_stall_or_leave_anywhere_hold_nobody_up() {
    let gateway = Gateway::start(mirror().await).await;
    let whole = gateway.head("POST /slow", "content-length: 1000\r\n");
    let mut stalled = Vec::new();
    for number in 0..300_usize {
        let mut stream = gateway.connect().await;
        // Some in the middle of their head, some in the middle of their body.
        let upto = if number % 2 == 0 { number % whole.len() } else { whole.len() };
        stream.write_all(&whole.as_bytes()[..upto]).await.expect("sent");
        if number % 3 == 0 {
            stalled.push(stream);
        } else if number % 3 == 1 {
            // Gone with a reset.
            stream.set_zero_linger().expect("a reset");
        }
    }
    is_served(&gateway).await;
    drop(stalled);
    is_served(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_lie_break_their_own_answers_alone() {
    // The path says how to misbehave.
    let liar = service(|_, mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let answer: &[u8] = match path.as_str() {
                "/short" => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this",
                "/long" => b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmore than four",
                "/chunk" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\nnot that much",
                "/both" => {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n"
                }
                "/none" => b"",
                "/noise" => b"\x00\x01\x02 this is not HTTP\r\n\r\n",
                "/head" => b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n",
                _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            };
            if stream.write_all(answer).await.is_err() || path != "/ok" {
                if path == "/long" {
                    drop(read_to_end(&mut stream).await);
                }
                return;
            }
        }
    })
    .await;
    let gateway = Gateway::start(liar).await;
    for _ in 0..3 {
        for (path, begins) in [
            ("/short", "HTTP/1.1 200"),
            ("/long", "HTTP/1.1 200"),
            ("/chunk", "HTTP/1.1 200"),
            ("/both", "HTTP/1.1 200"),
            ("/none", "HTTP/1.1 502"),
            ("/noise", "HTTP/1.1 502"),
            ("/head", "HTTP/1.1 502"),
        ] {
            let request = gateway.head(&format!("GET {path}"), "connection: close\r\n");
            let answer = gateway.exchange(request.as_bytes()).await;
            assert!(answer.starts_with(begins), "{path}: {answer}");
            // What a service says past its answer is never taken for the next one's.
            if path == "/long" {
                assert!(answer.ends_with("\r\n\r\nmore"), "{answer}");
            }
            is_served(&gateway).await;
        }
    }
}

/// The requests that a service saw, for one connection's worth of octets.
async fn seen(octets: impl Fn(&Gateway) -> String) -> (Vec<String>, String) {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let recording = service(move |_, mut stream: TcpStream| {
        let told = told.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                let length = head.to_ascii_lowercase().lines().find_map(|line| {
                    line.strip_prefix("content-length: ").and_then(|length| length.trim().parse().ok())
                });
                let mut body = vec![0; length.unwrap_or(0)];
                if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
                    while !body.ends_with(b"0\r\n\r\n") {
                        let Ok(octet) = stream.read_u8().await else { return };
                        body.push(octet);
                    }
                } else if stream.read_exact(&mut body).await.is_err() {
                    return;
                }
                let _ = told.send(format!("{head}{}", String::from_utf8_lossy(&body)));
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await);
            }
        }
    })
    .await;
    let gateway = Gateway::start(recording).await;
    let answer = gateway.exchange(octets(&gateway).as_bytes()).await;
    is_served(&gateway).await;
    let mut all = Vec::new();
    while let Ok(request) = heard.try_recv() {
        all.push(request);
    }
    (all, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn framing_that_can_be_read_in_two_ways_reaches_a_service_in_one_or_not_at_all() {
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    for more in [
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n", smuggled.len()),
        format!("content-length: 4\r\ncontent-length: {}\r\nconnection: close\r\n", smuggled.len()),
        "transfer-encoding: xchunked\r\nconnection: close\r\n".to_owned(),
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\nconnection: close\r\n".to_owned(),
        "transfer-encoding : chunked\r\nconnection: close\r\n".to_owned(),
        "content-length: +4\r\nconnection: close\r\n".to_owned(),
        format!("connection: close, content-length\r\ncontent-length: {}\r\n", smuggled.len()),
    ] {
        let (requests, answer) = seen(|gateway| format!("{}{smuggled}", gateway.head("POST /framed", &more))).await;
        let smuggled = requests.iter().any(|request| request.starts_with("GET /smuggled"));
        assert!(!smuggled, "{more}: {requests:#?}\n{answer}");
        for request in requests.iter().filter(|request| request.starts_with("POST")) {
            let head = request.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
            let both = head.contains("content-length:") && head.contains("transfer-encoding:");
            assert!(!both, "{more}: {request}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_for_the_host_that_it_was_verified_for() {
    let gateway = Gateway::start(mirror().await).await;
    let (host, cookie) = (gateway.host(), gateway.cookie());
    let refused = [
        format!("GET / HTTP/1.1\r\nhost: {host}\r\nhost: other\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"),
        format!("GET / HTTP/1.1\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"),
        format!(
            "GET http://api--w--local.dev.localhost/ HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"
        ),
        format!("GET http://x@{host}/ HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: localhost:5432\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"),
        format!("CONNECT localhost:5432 HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"),
        format!("TRACE / HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"),
        format!("GET /.envforge/x HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"),
        format!("GET /%2eenvforge/x HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"),
    ];
    for request in refused {
        let answer = gateway.exchange(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 40"), "{request}\n{answer}");
    }
    // An upgrade to anything but a WebSocket is none; the service does not hear of it.
    let request = gateway.head("GET /", "connection: upgrade, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n");
    let answer = gateway.exchange(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("h2c"), "{answer}");
    // The whole form of an address for its own host is that host's.
    let request =
        format!("GET http://{host}/whole HTTP/1.1\r\nhost: ignored\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n");
    let answer = gateway.exchange(request.as_bytes()).await;
    assert!(answer.contains("GET /whole HTTP/1.1"), "{answer}");
}
