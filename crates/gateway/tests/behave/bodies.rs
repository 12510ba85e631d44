//! Bodies, both ways: streamed, endless, with trailers, by HTTP/1.1 and HTTP/2.

use crate::support::{Gateway, mirror, read_head, read_to_end, service};
use envforge_api::{gateway::Revoked, link::Holder, time::Timestamp};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_on_one_connection_of_http_2_each_get_their_answer() {
    let gateway = Gateway::start(mirror().await).await;
    let stream = gateway.connect().await;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("http/2");
    tokio::spawn(connection);
    let cookie = gateway.cookie();
    let asking = (0..50).map(|number| {
        let request = Request::get(format!("http://{}/page/{number}", gateway.host()))
            .header("cookie", "a=1")
            .header("cookie", &cookie)
            .header("x-forwarded-for", "forged")
            .body(Empty::<Bytes>::new())
            .expect("a request");
        let mut sender = sender.clone();
        tokio::spawn(async move {
            sender.ready().await.expect("ready");
            let answer = sender.send_request(request).await.expect("an answer");
            assert_eq!(answer.status(), 200);
            let body = answer.into_body().collect().await.expect("a body").to_bytes();
            let head = String::from_utf8_lossy(&body).into_owned();
            assert!(head.starts_with(&format!("GET /page/{number} HTTP/1.1\r\n")), "{head}");
            assert!(head.contains("host: localhost:3000\r\n") && head.contains("cookie: a=1\r\n"), "{head}");
            assert!(!head.contains("forged") && !head.contains("envforge="), "{head}");
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.expect("answered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_asked_for_only_when_the_service_takes_it_and_flows_while_it_is_answered() {
    // Says back what it hears as it hears it, in chunks.
    let echo = service(|_, mut stream| async move {
        let head = read_head(&mut stream).await.expect("a request");
        assert!(!head.to_ascii_lowercase().contains("expect:"), "{head}");
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.expect("sent");
        let mut octets = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut octets).await {
            // The request's own chunks, as the body of the answer.
            let framed = [format!("{read:x}\r\n").as_bytes(), &octets[..read], b"\r\n"].concat();
            if stream.write_all(&framed).await.is_err() {
                return;
            }
        }
    })
    .await;
    let gateway = Gateway::start(echo).await;
    let mut stream = gateway.connect().await;
    let more = "transfer-encoding: chunked\r\nexpect: 100-continue\r\n";
    stream.write_all(gateway.head("POST /up", more).as_bytes()).await.expect("sent");
    let head = read_head(&mut stream).await.expect("word to go on");
    assert!(head.starts_with("HTTP/1.1 100"), "{head}");
    stream.write_all(b"5\r\nfirst\r\n").await.expect("sent");
    let head = read_head(&mut stream).await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    // It comes back while the request is still being sent, and so on for as long as anyone likes.
    for word in ["first", "again", "and again"] {
        let mut heard = String::new();
        while !heard.contains(word) {
            let mut octets = [0; 1024];
            let read = stream.read(&mut octets).await.expect("read");
            assert!(read > 0, "{heard}");
            heard.push_str(&String::from_utf8_lossy(&octets[..read]));
        }
        let next = if word == "first" { "again" } else { "and again" };
        stream.write_all(format!("{:x}\r\n{next}\r\n", next.len()).as_bytes()).await.expect("sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_a_visitor_who_takes_them() {
    let trailing = service(|_, mut stream| async move {
        let head = read_head(&mut stream).await.expect("a request");
        assert!(head.to_ascii_lowercase().contains("te: trailers"), "{head}");
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 42\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("sent");
        drop(read_to_end(&mut stream).await);
    })
    .await;
    let gateway = Gateway::start(trailing).await;
    let request = gateway.head("GET /", "te: trailers\r\nconnection: te, close\r\n");
    let answer = gateway.exchange(request.as_bytes()).await;
    assert!(answer.ends_with("4\r\nbody\r\n0\r\nx-sum: 42\r\n\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_answer_ends_when_its_link_is_revoked_and_a_slow_reader_holds_back_its_service_alone() {
    let (told, mut sent) = mpsc::unbounded_channel();
    let endless = service(move |_, mut stream| {
        let told = told.clone();
        async move {
            read_head(&mut stream).await.expect("a request");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await.expect("sent");
            while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {
                let _ = told.send(());
            }
        }
    })
    .await;
    let gateway = Gateway::start(endless).await;
    let visit = gateway.visit();
    let request =
        format!("GET / HTTP/1.1\r\nhost: {}\r\ncookie: envforge={}\r\n\r\n", gateway.host(), gateway.signed(&visit));
    let mut slow = gateway.connect().await;
    slow.write_all(request.as_bytes()).await.expect("sent");
    read_head(&mut slow).await.expect("an answer");
    // Nobody reads: after what the kernel keeps, the service is held back.
    let mut chunks = 0_u32;
    while tokio::time::timeout(Duration::from_secs(2), sent.recv()).await.is_ok() {
        chunks += 1;
        assert!(chunks < 4096, "a slow reader costs 256 MiB");
    }
    // Another visitor of the same service is not.
    let mut quick = gateway.connect().await;
    quick.write_all(gateway.head("GET /", "").as_bytes()).await.expect("sent");
    read_head(&mut quick).await.expect("an answer");
    let mut octets = vec![0; 1 << 20];
    quick.read_exact(&mut octets).await.expect("a MiB");

    let until = Timestamp::now() + jiff::SignedDuration::from_secs(60);
    let holder: Holder = visit.holder.clone();
    gateway.tell(|says| says.revoked = vec![Revoked { holder, until }]);
    // It ends, with what was on its way.
    drop(read_to_end(&mut slow).await);
    quick.read_exact(&mut octets).await.expect("the other goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_its_service_closed_is_not_used_again() {
    // Answers one request on each connection, promises to keep it, and closes it.
    let closing = service(|number, mut stream| async move {
        if read_head(&mut stream).await.is_some() {
            let body = format!("connection {number}");
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            drop(stream.write_all(answer.as_bytes()).await);
        }
    })
    .await;
    let gateway = Gateway::start(closing).await;
    for number in 0..20 {
        let request = gateway.head("GET /", "connection: close\r\n");
        let answer = gateway.exchange(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "request {number}: {answer}");
    }
}
