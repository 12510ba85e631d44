//! SIGTERM ends every gateway of a program, so this has a program to itself.

#[allow(dead_code, reason = "shared with the other tests, which use more of it")]
#[path = "behave/support.rs"]
mod support;

use envforge_api::{
    client::Stream,
    secret::Secret,
    time::Timestamp,
    tunnel::{self, Open, Pass, PassGranted},
};
use envforge_gateway::Security;
use std::time::Duration;
use support::{Gateway, read_head, read_to_end, service};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{mpsc, watch},
};

/// Where a tunnel is carried and where a visitor is served is a matter of luck: what is wrong on different cores is met
/// within so many attempts.
const ATTEMPTS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_finishes_what_goes_through_a_tunnel_whichever_core_carries_it() {
    for _ in 0..ATTEMPTS {
        let gateway = Gateway::far_from_its_host(Security::Plain).await;
        let (told, mut begun) = mpsc::unbounded_channel();
        let (go, may_go) = watch::channel(false);
        let service = service(move |_, mut stream| {
            let (told, mut may_go) = (told.clone(), may_go.clone());
            async move {
                while read_head(&mut stream).await.is_some() {
                    told.send(()).expect("taken");
                    drop(may_go.wait_for(|go| *go).await);
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone";
                    drop(stream.write_all(answer.as_bytes()).await);
                }
            }
        })
        .await;
        let expires_at = Timestamp::now() + jiff::SignedDuration::from_secs(60);
        let pass = Pass { host: gateway.around.host.clone(), expires_at };
        let token = Secret::new(gateway.around.key.sign(&pass).expect("signed"));
        let pass = PassGranted { token, expires_at, base: "dev.localhost".into() };
        let taken = tunnel::ask(gateway.connect().await, &pass).await.expect("taken");
        let serving = tokio::spawn(tunnel::serve(taken, move |what| async move {
            assert!(matches!(what, Open::Dial(_)));
            Ok((Stream::Tcp(TcpStream::connect(service).await.expect("connected")), None))
        }));
        let mut visitor = gateway.connect().await;
        visitor.write_all(gateway.head("GET /", "").as_bytes()).await.expect("sent");
        begun.recv().await.expect("it came");
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::TERM).expect("told");
        // Whatever ends too early has ended by then.
        tokio::time::sleep(Duration::from_millis(200)).await;
        go.send_replace(true);
        let answer = read_to_end(&mut visitor).await;
        assert!(answer.ends_with("done"), "{answer}");
        // How it ends does not matter.
        drop(tokio::time::timeout(Duration::from_secs(60), serving).await.expect("the tunnel ends with the gateway"));
    }
}
