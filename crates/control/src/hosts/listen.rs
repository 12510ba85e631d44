//! One LISTEN connection for each replica: what another replica changed rings this one's bells.

use super::store::{CHANNEL, FEED};
use crate::app::App;
use sqlx::postgres::PgListener;
use std::time::Duration;

/// Runs until the server stops. Its failure costs promptness only, since parked requests end by themselves: it is
/// logged and the connection is made again.
pub(crate) async fn run(app: App) {
    loop {
        tokio::select! {
            () = app.stopping.cancelled() => return,
            ended = listen(&app) => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "the connection for notifications was lost");
                }
            }
        }
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn listen(app: &App) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(&app.pool).await?;
    listener.ignore_pool_close_event(true);
    listener.listen(CHANNEL).await?;
    // What was announced while nobody listened.
    app.bells.ring_everyone();
    loop {
        let notification = listener.try_recv().await?;
        match notification.as_ref().map(|notification| notification.payload()) {
            Some(FEED) => {}
            Some(payload) => match payload.parse() {
                Ok(host) => {
                    app.bells.ring_host(&host);
                    app.bells.ring_feed_soon();
                    continue;
                }
                Err(_) => app.bells.ring_everyone(),
            },
            // The connection was lost and made again.
            None => app.bells.ring_everyone(),
        }
        if notification.is_none_or(|notification| notification.payload() == FEED)
            && let Err(failure) = app.keys.reload(&app.pool).await
        {
            tracing::warn!(problem = %failure.0, "the signing keys could not be read again");
        }
        app.bells.ring_feed();
    }
}
