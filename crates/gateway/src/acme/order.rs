//! One order: records are made, the server looks at them, the certificate is fetched and kept. The records are taken
//! away again, however it ended.

use super::{
    Settings, broken,
    hook::{self, Ask, Record},
    kept,
};
use envforge_api::problem::Problem;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use serde::{Deserialize, Serialize};
use std::{fs, time::Duration};

/// How long the server may take to look, and to make the certificate.
const PATIENCE: Duration = Duration::from_secs(300);

/// An account is known to one server only.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    account: instant_acme::AccountCredentials,
}

fn refused(doing: &str, error: &Error) -> Problem {
    let hint = "the words are the ACME server's own; `--acme-directory` and `--acme-root` say which it is and whom it is known by";
    broken(doing, said(error), hint)
}

/// With its causes: a connection's failure says what it was only there.
fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// # Errors
/// Of the server, the hook, or the disk.
pub(super) async fn obtain(settings: &Settings, base: &str) -> Result<(), Problem> {
    let disk = |e: std::io::Error| broken("keep a certificate", e, "look at the directory given with --acme-dir");
    kept::ensure(&settings.dir).map_err(disk)?;
    let account = account(settings).await?;
    let names = [base.to_owned(), format!("*.{base}")].map(Identifier::Dns);
    let order = account.new_order(&NewOrder::new(&names)).await;
    let mut order = order.map_err(|e| refused("order a certificate", &e))?;
    let mut made = Vec::new();
    let outcome = prove(settings, &mut order, &mut made).await;
    for record in &made {
        if let Err(problem) = hook::call(&settings.hook, Ask::Cleanup, record).await {
            tracing::warn!(reason = %problem.message, "a DNS record stays");
        }
    }
    outcome?;
    let key = order.finalize().await.map_err(|e| refused("have the certificate made", &e))?;
    let chain = order.poll_certificate(&patient()).await.map_err(|e| refused("fetch the certificate", &e))?;
    kept::write(&settings.files().certificate, &format!("{}\n{chain}", key.trim_end())).map_err(disk)
}

fn patient() -> RetryPolicy {
    RetryPolicy::new().timeout(PATIENCE)
}

async fn account(settings: &Settings) -> Result<Account, Problem> {
    let doing = "use the account at the ACME server";
    let builder = match &settings.root {
        Some(root) => Account::builder_with_root(root),
        None => Account::builder(),
    };
    let builder = builder.map_err(|e| refused(doing, &e))?;
    let path = settings.dir.join("account.json");
    let known = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
    if let Some(known) = known.filter(|known| known.directory == settings.directory) {
        return builder.from_credentials(known.account).await.map_err(|e| refused(doing, &e));
    }
    let contact: Vec<&str> = settings.contact.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let made = builder.create(&new, settings.directory.clone(), None).await;
    let (account, credentials) = made.map_err(|e| refused("open an account at the ACME server", &e))?;
    let kept = Kept { directory: settings.directory.clone(), account: credentials };
    let text = serde_json::to_string(&kept).map_err(|e| broken(doing, e, "this is a defect of EnvForge"))?;
    kept::write(&path, &text)
        .map_err(|e| broken("keep the ACME account", e, "look at the directory given with --acme-dir"))?;
    Ok(account)
}

/// Both names are proved by records of one name: they are all made before the server is asked to look at any.
async fn prove(settings: &Settings, order: &mut Order, made: &mut Vec<Record>) -> Result<(), Problem> {
    let doing = "prove who has the name";
    let failed = |e: Error| refused(doing, &e);
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(failed)?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let Identifier::Dns(of) = authorization.identifier().identifier.clone() else { continue };
        let challenge = authorization.challenge(ChallengeType::Dns01);
        let challenge = challenge.ok_or(Error::Unsupported("dns-01")).map_err(failed)?;
        let record = Record { name: format!("_acme-challenge.{of}"), value: challenge.key_authorization().dns_value() };
        // One that may have been made half is taken away too.
        made.push(record.clone());
        hook::call(&settings.hook, Ask::Present, &record).await?;
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(failed)?;
        if authorization.status == AuthorizationStatus::Pending
            && let Some(mut challenge) = authorization.challenge(ChallengeType::Dns01)
        {
            challenge.set_ready().await.map_err(failed)?;
        }
    }
    let status = order.poll_ready(&patient()).await.map_err(failed)?;
    if matches!(status, OrderStatus::Ready | OrderStatus::Valid) {
        return Ok(());
    }
    let mut why = format!("the order is {status:?}");
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        for error in state.challenges.iter().filter_map(|challenge| challenge.error.as_ref()) {
            why = said(error);
        }
    }
    Err(broken(doing, why, "does the hook program return only when the name's own servers answer with the record?"))
}
