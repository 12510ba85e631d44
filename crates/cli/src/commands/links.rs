//! `share`, `links`, `revoke` and `open`: signed links, and a service in one's own browser.

use crate::{
    args::{LinksArgs, OpenArgs, RevokeArgs, ShareArgs, words},
    context::Context,
    output::{tables, times},
};
use envforge_api::{
    ids::LinkId,
    link::{Family, MAX_LIFETIME_SECONDS, OpenRequest, OpenedPage, ShareRequest, Shared},
    names::ServiceName,
    problem::{Problem, ProblemKind},
    public::{LinkList, LinkView},
    time::Timestamp,
};
use http::Method;
use std::{
    io::IsTerminal,
    process::{Command, ExitCode, Stdio},
};

pub(super) async fn share(context: &Context, args: ShareArgs) -> Result<ExitCode, Problem> {
    let (service, port) = named(args.service.as_deref())?;
    let expires_seconds = Some(lifetime(&args.expires)?);
    let families = args.families.iter().map(|word| word.parse::<Family>()).collect::<Result<_, _>>();
    let families = families.map_err(|error| usage(error.to_string(), "`envforge share --help` lists them"))?;
    let families = (!args.families.is_empty()).then_some(families);
    let workspace = context.workspace(args.ws.as_deref()).await?;
    let request = ShareRequest { service, port, expires_seconds, families };
    let path = format!("/v1/workspaces/{workspace}/links");
    let shared: Shared = context.client().await?.post(&path, &request).await?;
    if !context.out.json {
        let end = times::relative(shared.expires_at, Timestamp::now());
        context.out.say(&format!(
            "opens {} of {} until {} ({end}); `envforge revoke {}` ends it",
            shared.service,
            shared.workspace,
            times::point(shared.expires_at),
            shared.id
        ));
    }
    context.out.data(&shared, || shared.url.clone());
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn list(context: &Context, args: LinksArgs) -> Result<ExitCode, Problem> {
    let workspace = context.workspace(args.ws.as_deref()).await?;
    let list: LinkList = context.client().await?.get(&format!("/v1/workspaces/{workspace}/links")).await?;
    context.out.data(&list, || {
        if list.links.is_empty() {
            return format!("no links into {workspace}: `envforge share {workspace}` makes one");
        }
        tables::links(&list.links, Timestamp::now())
    });
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn revoke(context: &Context, args: RevokeArgs) -> Result<ExitCode, Problem> {
    // What cannot be an id is none; it must not become another path either.
    let id: LinkId = args.link.parse().map_err(|_| Problem::not_found(format!("link `{}`", args.link)))?;
    let client = context.client().await?;
    let ended: LinkView = client.call(Method::DELETE, &format!("/v1/links/{id}"), None::<&()>).await?;
    context.out.data(&ended, || format!("{} opens nothing any more", ended.id));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn open(context: &Context, args: OpenArgs) -> Result<ExitCode, Problem> {
    let (ws, names) = words::split(&args.words, &context.known().await?, true);
    let (service, port) = named(names.first().map(String::as_str))?;
    let workspace = context.workspace(ws.as_deref()).await?;
    let path = format!("/v1/workspaces/{workspace}/visits");
    let page: OpenedPage = context.client().await?.post(&path, &OpenRequest { service, port }).await?;
    context.out.data(&page, || page.url.clone());
    if !context.out.json && std::io::stdout().is_terminal() && is_graphical() {
        browse(context, &page.url);
    }
    Ok(ExitCode::SUCCESS)
}

fn usage(message: impl Into<String>, hint: &str) -> Problem {
    Problem::new(ProblemKind::Usage, message, hint)
}

/// Reads `SERVICE` or `SERVICE.PORT`.
fn named(given: Option<&str>) -> Result<(Option<ServiceName>, Option<ServiceName>), Problem> {
    let Some(given) = given else { return Ok((None, None)) };
    let read = |text: &str| {
        text.parse::<ServiceName>().map_err(|error| {
            usage(error.to_string(), "write SERVICE or SERVICE.PORT; `envforge status` lists services")
        })
    };
    match given.split_once('.') {
        Some((service, port)) => Ok((Some(read(service)?), Some(read(port)?))),
        None => Ok((Some(read(given)?), None)),
    }
}

/// Seconds of a link.
fn lifetime(given: &str) -> Result<i64, Problem> {
    let seconds = i64::try_from(times::parse_duration(given)?).unwrap_or(i64::MAX);
    if (1..=MAX_LIFETIME_SECONDS).contains(&seconds) {
        return Ok(seconds);
    }
    Err(usage(format!("a link cannot last {given}"), "at least 1s and at most 30d"))
}

fn is_graphical() -> bool {
    ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// Hands the page to the browser; the URL is printed whatever becomes of it.
fn browse(context: &Context, url: &str) {
    let mut command = Command::new("xdg-open");
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if command.spawn().is_err() {
        context.out.say("no xdg-open here: open the URL yourself, within a minute");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_lasts_at_most_thirty_days() {
        assert_eq!(lifetime("2h").expect("read"), 7200);
        assert_eq!(lifetime("30d").expect("read"), MAX_LIFETIME_SECONDS);
        for bad in ["31d", "0s", "soon"] {
            assert_eq!(lifetime(bad).expect_err(bad).kind, ProblemKind::Usage);
        }
    }

    #[test]
    fn a_service_may_be_followed_by_one_of_its_ports() {
        let words = |given| named(given).map(|(s, p)| (s.map(String::from), p.map(String::from)));
        assert_eq!(words(None), Ok((None, None)));
        assert_eq!(words(Some("web")), Ok((Some("web".into()), None)));
        assert_eq!(words(Some("web.admin")), Ok((Some("web".into()), Some("admin".into()))));
        for bad in ["Web", "web.", "a.b.c"] {
            assert_eq!(named(Some(bad)).expect_err(bad).kind, ProblemKind::Usage);
        }
    }
}
