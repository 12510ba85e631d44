//! Routes of links.

use super::{share, store};
use crate::{
    app::App,
    http::{
        auth::Allowed,
        extract::{Answer, At, Body},
    },
    workspaces::http::find,
};
use axum::{Json, extract::State};
use envforge_api::{
    link::{OpenRequest, OpenedPage, ShareRequest, Shared},
    public::{LinkList, LinkView},
};

/// Issues a link.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/links", params(("slug" = String, Path, description = "Slug or id")),
    request_body = ShareRequest, responses((status = 200, body = Shared)))]
pub(crate) async fn issue(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<ShareRequest>,
) -> Answer<Shared> {
    let row = find(&app, &allowed, &slug).await?;
    Ok(Json(share::share(&app, &allowed, &row, request).await?))
}

/// The links of a workspace that are valid.
#[utoipa::path(get, path = "/v1/workspaces/{slug}/links", params(("slug" = String, Path, description = "Slug or id")),
    responses((status = 200, body = LinkList)))]
pub(crate) async fn list(State(app): State<App>, allowed: Allowed, At(slug): At<String>) -> Answer<LinkList> {
    let row = find(&app, &allowed, &slug).await?;
    let links = store::valid(&app.pool, &[row.id.as_str()]).await?.remove(&row.id).unwrap_or_default();
    Ok(Json(LinkList { links }))
}

/// Revokes a link.
#[utoipa::path(delete, path = "/v1/links/{link}", params(("link" = String, Path, description = "Id of the link")),
    responses((status = 200, body = LinkView)))]
pub(crate) async fn revoke(State(app): State<App>, allowed: Allowed, At(link): At<String>) -> Answer<LinkView> {
    Ok(Json(share::revoke(&app, &allowed, &link).await?))
}

/// Opens a service as a member, without a link.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/visits", params(("slug" = String, Path, description = "Slug or id")),
    request_body = OpenRequest, responses((status = 200, body = OpenedPage)))]
pub(crate) async fn open(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<OpenRequest>,
) -> Answer<OpenedPage> {
    let row = find(&app, &allowed, &slug).await?;
    Ok(Json(share::open(&app, &allowed, &row, request).await?))
}
