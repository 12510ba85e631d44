//! Signing keys: rotation with overlap.

use crate::support::installation::Installation;
use envforge_api::{
    capability,
    gateway::{Code, CodeRequest, Feed},
    link::Link,
    public::KeyRotated,
    secret::Secret,
    sign,
    time::Timestamp,
};
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn a_new_key_is_told_to_everyone_before_it_signs_and_what_the_old_one_signed_stays_valid() {
    let it = Installation::start().await;
    let (mut host, gateway) = (it.host().await, it.gateway());
    it.open("ws", false).await;
    host.sync(0).await;
    let shared = it.share("ws", json!({ "service": "web" })).await.expect("a link");
    let link = shared.url.rsplit_once('/').expect("a URL").1.to_owned();
    let before: Feed = gateway.get("/v1/gateway/feed").await.expect("the feed");
    assert_eq!(before.keys.len(), 1);

    let path = format!("/v1/gateway/feed?since={}&wait_ms=25000", before.seq);
    let (feed, sync) = (
        tokio::spawn(async move { gateway.get::<Feed>(&path).await }),
        tokio::spawn(async move { host.sync(25_000).await }),
    );
    let rotated: KeyRotated = it.owner().post("/v1/keys/rotate", &json!({})).await.expect("rotated");
    assert!(rotated.signs_from > Timestamp::now() && rotated.others_end_at > shared.expires_at);
    let limit = Duration::from_secs(10);
    let told = tokio::time::timeout(limit, feed).await.expect("in time").expect("ran").expect("the feed");
    let synced = tokio::time::timeout(limit, sync).await.expect("in time").expect("ran");
    assert_eq!((&told.keys, &synced.keys), (&rotated.keys, &rotated.keys));
    assert_eq!(rotated.keys.len(), 2);

    // Not yet signed with, then signed with; both verify.
    let signs = async |keys: &[sign::VerifyKey]| {
        let opened = it.open("ws", false).await;
        capability::verify(keys, opened.grant.token.expose(), Timestamp::now()).is_ok()
    };
    assert!(signs(&before.keys).await);
    sqlx::query("UPDATE signing_keys SET signs_from = now() WHERE id = $1")
        .bind(&rotated.id)
        .execute(&it.pool)
        .await
        .expect("a minute passed");
    let (url, state) = (it.url.clone(), it.state.clone());
    let again = Installation::on(url, state).await;
    let opened = again.open("ws", false).await;
    let token = opened.grant.token.expose();
    assert!(capability::verify(&before.keys, token, Timestamp::now()).is_err());
    assert!(capability::verify(&rotated.keys, token, Timestamp::now()).is_ok());
    assert!(sign::verify::<Link>(&rotated.keys, &link, Timestamp::now()).is_ok());
    let request = CodeRequest { link: Secret::new(link) };
    again.gateway().post::<_, Code>("/v1/gateway/codes", &request).await.expect("the old link opens still");

    // Past its end the old one verifies nothing.
    sqlx::query("UPDATE signing_keys SET ends_at = now() WHERE ends_at IS NOT NULL")
        .execute(&it.pool)
        .await
        .expect("ended");
    let last: Feed = again.gateway().get("/v1/gateway/feed").await.expect("the feed");
    assert_eq!(last.keys.len(), 2, "known until it is read again");
    again.running.stop().await;
    let later = Installation::on(it.url.clone(), it.state.clone()).await;
    let last: Feed = later.gateway().get("/v1/gateway/feed").await.expect("the feed");
    assert_eq!(last.keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>(), [rotated.id.as_str()]);
    later.gateway().post::<_, Code>("/v1/gateway/codes", &request).await.expect_err("signed by a key that ended");
    later.running.stop().await;
    it.stop().await;
}

#[tokio::test]
async fn a_state_directory_made_again_signs_with_a_key_of_its_own_and_the_old_one_still_verifies() {
    let it = Installation::start().await;
    it.open("ws", false).await;
    let shared = it.share("ws", json!({ "service": "web" })).await.expect("a link");
    let other = Installation::on(it.url.clone(), crate::support::installation::scratch()).await;
    let feed: Feed = other.gateway().get("/v1/gateway/feed").await.expect("the feed");
    assert_eq!(feed.keys.len(), 2);
    let link = shared.url.rsplit_once('/').expect("a URL").1;
    assert!(sign::verify::<Link>(&feed.keys, link, Timestamp::now()).is_ok());
    other.share("ws", json!({ "service": "web" })).await.expect("signed with the new one");
    other.stop().await;
    it.stop().await;
}
