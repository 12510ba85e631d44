//! SIGTERM ends every gateway of a program, so this has a program to itself.

#[allow(dead_code, reason = "shared with the other tests, which use more of it")]
#[path = "behave/authority.rs"]
mod authority;
#[allow(dead_code, reason = "shared with the other tests, which use more of it")]
#[path = "behave/support.rs"]
mod support;

use authority::{Authority, Character, until};
use envforge_gateway::Security;
use std::{fs, time::Duration};
use support::{Gateway, mirror};

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_in_the_middle_of_an_order_takes_its_records_away_and_leaves_no_hook() {
    let Some(authority) = Authority::start(Character { lasting: 7_776_000, refusing: 0 }) else { return };
    fs::write(authority.at("slow"), "").expect("slow");
    let service = mirror().await;
    let settings = authority.settings.clone();
    // It never becomes ready; starting it fails when it has ended.
    let gateway = tokio::spawn(async move { Gateway::start_with(service, Security::Acme(settings)).await.address });
    let waits = authority.at("waits");
    tokio::task::block_in_place(|| until("the hook waits", || waits.exists()));
    let waiting = fs::read_to_string(waits).expect("a process");
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::TERM).expect("told");
    let ended = tokio::time::timeout(Duration::from_secs(60), gateway).await.expect("it ends");
    assert!(ended.is_err(), "it was not ready");
    let record = "_acme-challenge.dev.localhost";
    assert_eq!(authority.calls(), format!("present {record}\ncleanup {record}\n"));
    let state = || fs::read_to_string(format!("/proc/{}/stat", waiting.trim())).unwrap_or_default();
    // Whoever adopted it may not have waited for it yet.
    let gone = || !state().contains("(sleep)") || state().contains("(sleep) Z");
    tokio::task::block_in_place(|| until("what the hook had started has ended", gone));
}
