//! The tunnel: neither side panics, hangs or keeps anything, whatever the other one says; and whatever happens to some
//! streams, the others carry their octets unharmed and in order.
//!
//! Everything is in memory, on a clock that stands still while something can be done and jumps when nothing can: what
//! hangs is found at once.

mod dial;
mod frames;
mod raw;
mod services;
mod streams;

use super::input::Input;
use std::time::Duration;
use tokio::{
    runtime::{Builder, Handle},
    time::{sleep, timeout},
};

/// Pings notice within half a minute that the other side is gone; the rest is for what follows from it.
const SOON: Duration = Duration::from_secs(60);
/// Longer than anything takes that goes on at all, with an hour of silence in it.
const LONG: Duration = Duration::from_secs(3 * 3600);

/// The input says which side is spoken to, then what happens.
pub fn tunnel(input: &[u8]) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let mut input = Input::new(input);
        let happens = async {
            match input.below(4) {
                0 => raw::to_host(&mut input).await,
                1 => raw::to_gateway(&mut input).await,
                2 => streams::happen(&mut input).await,
                _ => dial::lines(&mut input).await,
            }
        };
        timeout(LONG, happens).await.expect("it hangs");
        sleep(SOON).await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0, "something stays behind");
    });
}
