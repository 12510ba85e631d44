//! Seeds: what fills a new database before anyone is told that it is ready. Each in one transaction, once for each data.

use super::{
    protocol::SeedStep,
    runtime::Shared,
    setup::{logged, read_done, record_done},
};
use crate::{
    resources::{
        Context,
        outside::{Fields, libpq},
    },
    system::{enter::base_environment, sandbox::WORKSPACE},
};
use envforge_api::{states::Trouble, stream::LogLevel};
use envforge_manifest::Layer;
use std::{path::Path, rc::Rc};

/// Runs what was not run yet for these data.
///
/// # Errors
/// The first that fails: what it did is undone, and it is tried again at the next wake or restart.
pub(super) async fn fill(shared: &Rc<Shared>, context: &Context) -> Result<(), Trouble> {
    for share in &context.shares {
        fill_with(shared, &share.fields, &share.seeds).await?;
    }
    Ok(())
}

/// The same for one database.
///
/// # Errors
/// As [`fill`].
pub(super) async fn fill_with(shared: &Rc<Shared>, fields: &Fields, seeds: &[SeedStep]) -> Result<(), Trouble> {
    for seed in seeds {
        if read_done(&shared.sandbox.dir, Layer::Runtime).get(&seed.name) != Some(&seed.digest) {
            run(shared, fields, seed).await?;
        }
    }
    Ok(())
}

async fn run(shared: &Rc<Shared>, fields: &Fields, seed: &SeedStep) -> Result<(), Trouble> {
    let mut environment = base_environment(&shared.sandbox.accounts.user);
    environment.extend(libpq(fields));
    environment.insert("PGOPTIONS".into(), "-c client_min_messages=warning".into());
    let words =
        ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-o", "/dev/null", "-f", &seed.file];
    let argv = words.map(ToOwned::to_owned);
    let log = |level, text: &str| shared.logs.write("setup", level, &format!("{}: {text}", seed.name));
    log(LogLevel::Info, "begins");
    let directory = Path::new(WORKSPACE).join(&seed.directory);
    let status = logged(shared, "-seed", directory, &argv, &environment).await?;
    if status != 0 {
        log(LogLevel::Error, &format!("ended with status {status}"));
        let hint = format!(
            "`envforge logs {} setup` has psql's words; mend the file, then restart a service that uses the database",
            shared.sandbox.hostname
        );
        return Err(Trouble::new(
            format!("the seed {}/{} failed with status {status}", seed.directory, seed.file),
            hint,
        ));
    }
    if let Err(error) = record_done(&shared.sandbox.dir, Layer::Runtime, &seed.name, &seed.digest) {
        log(LogLevel::Warn, &format!("not kept as done: {error}"));
    }
    Ok(())
}
