//! Ten thousand ways not to be let in.

use crate::support::{Gateway, mirror};
use envforge_api::{ids::WorkspaceId, link::Visit, sign::SigningKey, states::RuntimeState, time::Timestamp};
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One answer on a connection that is kept.
async fn ask(stream: &mut tokio::net::TcpStream, host: &str, header: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n{header}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8_lossy(&answer).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).await.expect("a body");
    let lines: Vec<&str> = head.lines().filter(|line| !line.starts_with("date:")).collect();
    format!("{}\n{}", lines.join("\n"), String::from_utf8_lossy(&body))
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_mutated_cookies_and_links_are_all_refused_alike_and_nothing_is_asked_or_woken() {
    let gateway = Gateway::start(mirror().await).await;
    gateway.tell(|says| says.state = RuntimeState::Asleep);
    let token = gateway.signed(&gateway.visit());
    let mut wrong: Vec<String> = Vec::new();
    // Every bit of every character, as far as it stays a character of a header.
    for at in 0..token.len() {
        for bit in 0..8 {
            let mut octets = token.clone().into_bytes();
            octets[at] ^= 1 << bit;
            if octets[at].is_ascii_graphic() && !b";,\"\\".contains(&octets[at]) {
                wrong.push(String::from_utf8(octets).expect("text"));
            }
        }
    }
    // Every other character in the place of some.
    while wrong.len() < 9_900 {
        let mut octets = token.clone().into_bytes();
        let (at, to) = (rand::random_range(0..octets.len()), rand::random_range(b'0'..=b'z'));
        if octets[at] != to && to.is_ascii_alphanumeric() {
            octets[at] = to;
            wrong.push(String::from_utf8(octets).expect("text"));
        }
    }
    // Cut, doubled, joined.
    wrong.extend((0..60).map(|_| token[..rand::random_range(0..token.len())].to_owned()));
    wrong.extend([format!("{token}{token}"), format!("{token}."), format!("{token}="), "v4.public.".into()]);
    // Sound, but of another key, another host, or the past.
    let sign = |change: &dyn Fn(&mut Visit)| {
        let mut visit = gateway.visit();
        change(&mut visit);
        gateway.signed(&visit)
    };
    wrong.push(SigningKey::generate().expect("a key").sign(&gateway.visit()).expect("signed"));
    wrong.push(sign(&|visit| visit.host = "api--w--local".parse().expect("a label")));
    wrong.push(sign(&|visit| visit.host = "web--w--other".parse().expect("a label")));
    wrong.push(sign(&|visit| visit.expires_at = Timestamp::now() - jiff::SignedDuration::from_secs(1)));
    for _ in 0..40 {
        let seconds = rand::random_range(1..1_000_000);
        wrong.push(sign(&|visit| visit.expires_at = Timestamp::now() - jiff::SignedDuration::from_secs(seconds)));
    }
    assert!(wrong.len() >= 10_000, "{}", wrong.len());
    let mut stream = gateway.connect().await;
    let nowhere = ask(&mut stream, "web--nothing--here.dev.localhost", "x: y").await;
    assert!(nowhere.starts_with("HTTP/1.1 404"), "{nowhere}");
    for (number, wrong) in wrong.iter().enumerate() {
        let header =
            if number % 2 == 0 { format!("cookie: envforge={wrong}") } else { format!("x-envforge-link: {wrong}") };
        assert_eq!(ask(&mut stream, &gateway.host(), &header).await, nowhere, "{wrong}");
    }
    // A sound visit is no link.
    let header = format!("x-envforge-link: {token}");
    assert_eq!(ask(&mut stream, &gateway.host(), &header).await, nowhere);
    let asked = (gateway.around.routes.load(Ordering::SeqCst), gateway.around.wakes.load(Ordering::SeqCst));
    assert_eq!(asked, (0, 0), "routes and wakes that were asked for");
    // Of a workspace that is not there any more: the same again.
    let gone = sign(&|visit| visit.workspace = WorkspaceId::generate());
    assert_eq!(ask(&mut stream, &gateway.host(), &format!("cookie: envforge={gone}")).await, nowhere);
    // And the sound one is let in.
    gateway.tell(|says| says.state = RuntimeState::Awake);
    let let_in = ask(&mut stream, &gateway.host(), &format!("cookie: envforge={token}")).await;
    assert!(let_in.starts_with("HTTP/1.1 200"), "{let_in}");
}
