//! One order: records are made, the server looks at them, the certificate is fetched and kept. The records are taken
//! away again, however it ended, also when the gateway stops meanwhile.

use super::{
    Keeper, broken,
    hook::{self, Ask, Record},
    standing::Wanted,
};
use envforge_api::{problem::Problem, secret::Secret};
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the server may take to look, and to make the certificate.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the hook may take for each record once the gateway stops.
const AT_THE_END: Duration = Duration::from_secs(5);
/// What a server says when it has forgotten an account.
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

fn refused(doing: &str, error: &Error) -> Problem {
    let hint = "the words are the ACME server's own; `--acme-directory` and `--acme-root` say which it is and whom it is known by";
    broken(doing, said(error), hint)
}

/// With its causes: a connection's failure says what it was only there.
fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some only repeat what they wrap.
        if !text.ends_with(&more) {
            text.push_str(&format!(": {more}"));
        }
        cause = error.source();
    }
    text
}

impl Keeper {
    /// # Errors
    /// Of the server, the hook, or the disk; and when `stop` comes first.
    pub(super) async fn obtain(&self, wanted: &Wanted, stop: &CancellationToken) -> Result<(), Problem> {
        let mut made = Vec::new();
        let outcome = tokio::select! {
            outcome = self.steps(wanted, &mut made) => outcome,
            () = stop.cancelled() => Err(Problem::unavailable("the gateway stops", "")),
        };
        for record in &made {
            let cleaned = tokio::select! {
                cleaned = hook::call(&self.hook, Ask::Cleanup, record, hook::PATIENCE) => cleaned,
                () = at_the_end(stop) => Err(broken("take the record away", "the gateway stops", "take it away by hand")),
            };
            if let Err(problem) = cleaned {
                tracing::warn!(reason = %problem.message, hint = %problem.hint, "a DNS record stays");
            }
        }
        outcome
    }

    async fn steps(&self, wanted: &Wanted, made: &mut Vec<Record>) -> Result<(), Problem> {
        let mut order = self.order(wanted).await?;
        self.present(&mut order, made).await?;
        proved(&mut order).await?;
        let key = order.finalize().await.map(Secret::new).map_err(|e| refused("have the certificate made", &e))?;
        let chain = order.poll_certificate(&patient()).await.map_err(|e| refused("fetch the certificate", &e))?;
        self.dir.keep_certificate(&wanted.directory, &chain, &key)
    }

    /// An order by the account that is kept. A server that has forgotten it gets to know another one.
    async fn order(&self, wanted: &Wanted) -> Result<Order, Problem> {
        let names = wanted.names.clone().map(Identifier::Dns);
        let new = NewOrder::new(&names);
        let doing = "order a certificate";
        if let Some(known) = self.dir.account(&wanted.directory)? {
            let account = Account::builder_with_http(Box::new(self.http.clone())).from_credentials(known).await;
            let account = account.map_err(|e| refused("use the account at the ACME server", &e))?;
            match account.new_order(&new).await {
                Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => {
                    tracing::warn!(server = %wanted.directory, "the ACME server has forgotten the account; another one is made");
                }
                order => return order.map_err(|e| refused(doing, &e)),
            }
        }
        self.account(wanted).await?.new_order(&new).await.map_err(|e| refused(doing, &e))
    }

    async fn account(&self, wanted: &Wanted) -> Result<Account, Problem> {
        let contact: Vec<&str> = self.settings.contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        let made = builder.create(&new, wanted.directory.clone(), None).await;
        let (account, credentials) = made.map_err(|e| refused("open an account at the ACME server", &e))?;
        self.dir.keep_account(&wanted.directory, &credentials)?;
        Ok(account)
    }

    /// Both names are proved by records of one name: they are all made before the server is asked to look at any.
    async fn present(&self, order: &mut Order, made: &mut Vec<Record>) -> Result<(), Problem> {
        let failed = |e: Error| refused("learn what is to be proved", &e);
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(failed)?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let Identifier::Dns(of) = authorization.identifier().identifier.clone() else { continue };
            let challenge = authorization.challenge(ChallengeType::Dns01);
            let challenge = challenge.ok_or(Error::Unsupported("dns-01")).map_err(failed)?;
            let value = challenge.key_authorization().dns_value();
            let record = Record { name: format!("_acme-challenge.{of}"), value };
            // One that may have been made half is taken away too.
            made.push(record.clone());
            hook::call(&self.hook, Ask::Present, &record, hook::PATIENCE).await?;
        }
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(failed)?;
            if authorization.status == AuthorizationStatus::Pending
                && let Some(mut challenge) = authorization.challenge(ChallengeType::Dns01)
            {
                challenge.set_ready().await.map_err(|e| refused("have the records looked at", &e))?;
            }
        }
        Ok(())
    }
}

/// When nothing is waited for any more.
async fn at_the_end(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(AT_THE_END).await;
}

fn patient() -> RetryPolicy {
    RetryPolicy::new().backoff(1.5).timeout(PATIENCE)
}

/// Once the server has seen the records.
async fn proved(order: &mut Order) -> Result<(), Problem> {
    let doing = "prove who has the name";
    let looked = order.poll_ready(&patient()).await;
    if let Ok(OrderStatus::Ready | OrderStatus::Valid) = looked {
        return Ok(());
    }
    // The order says that something is wrong, its parts say what.
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(error) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            let hint = "does the hook program return only when the name's own servers answer with the record?";
            return Err(broken(doing, said(error), hint));
        }
    }
    Err(match looked {
        Ok(status) => broken(doing, format!("the order is {status:?}"), ""),
        Err(error) => refused(doing, &error),
    })
}
