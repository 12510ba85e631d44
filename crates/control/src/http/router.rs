//! Every route, each registered through [`Routes::mount`] with the one action it needs. There is no other way in.

use super::auth::{Demand, Scope, guard};
use crate::{
    app::App, audit, commands, copies, gateways, hosts, identity, keys, links, projects, secrets, usage, workspaces,
};
use axum::{Router, extract::DefaultBodyLimit, middleware::from_fn_with_state, response::IntoResponse};
use envforge_api::role::Action;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter},
    routes,
};

/// Largest body: a host's reports after a long absence.
const MAX_BODY: usize = 16 << 20;

/// One mounted route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteEntry {
    /// `GET`, `POST`, ….
    pub method: &'static str,
    /// Path with `{parameters}`.
    pub path: String,
    /// What a caller must be allowed.
    pub action: Action,
    /// What it is about.
    pub scope: Scope,
}

struct Routes {
    app: App,
    router: OpenApiRouter<App>,
    table: Vec<RouteEntry>,
}

impl Routes {
    /// Registers a handler behind the guard for its action.
    fn mount(mut self, action: Action, scope: Scope, handler: UtoipaMethodRouter<App>) -> Self {
        let (schemas, paths, methods) = handler;
        for (path, item) in &paths.paths {
            let operations = [
                ("GET", &item.get),
                ("PUT", &item.put),
                ("POST", &item.post),
                ("DELETE", &item.delete),
                ("PATCH", &item.patch),
                ("HEAD", &item.head),
                ("OPTIONS", &item.options),
            ];
            for (method, operation) in operations {
                if operation.is_some() {
                    self.table.push(RouteEntry { method, path: path.clone(), action, scope });
                }
            }
        }
        let demand = Demand { app: self.app.clone(), action, scope };
        let methods = methods.layer(from_fn_with_state(demand, guard));
        self.router = self.router.routes((schemas, paths, methods));
        self
    }
}

/// The router, its description and the table of what was mounted.
pub(crate) fn build(app: &App) -> (Router, OpenApi, Vec<RouteEntry>) {
    use Action::{
        ActAsGateway, ActAsHost, DeleteWorkspace, ManageOrganization, ManageProject, Public, SeeSelf, SeeUsage,
        SeeWorkspace, ShareLinks, UseWorkspace,
    };
    use Scope::{Organization, Workspace};
    let routes = Routes { app: app.clone(), router: super::openapi::base(), table: Vec::new() }
        .mount(Public, Organization, routes!(super::openapi::healthz))
        .mount(Public, Organization, routes!(super::openapi::document))
        .mount(SeeSelf, Workspace, routes!(identity::http::whoami))
        .mount(SeeWorkspace, Organization, routes!(projects::http::list))
        .mount(SeeWorkspace, Organization, routes!(projects::http::show))
        .mount(ManageProject, Organization, routes!(projects::http::apply))
        .mount(ManageProject, Organization, routes!(secrets::http::list))
        .mount(ManageProject, Organization, routes!(secrets::http::set))
        .mount(ManageProject, Organization, routes!(secrets::http::remove))
        .mount(UseWorkspace, Workspace, routes!(workspaces::http::open))
        .mount(SeeWorkspace, Workspace, routes!(workspaces::http::list))
        .mount(SeeWorkspace, Workspace, routes!(workspaces::http::show))
        .mount(UseWorkspace, Workspace, routes!(workspaces::http::grant))
        .mount(UseWorkspace, Workspace, routes!(workspaces::http::wake))
        .mount(UseWorkspace, Workspace, routes!(workspaces::http::sleep))
        .mount(UseWorkspace, Workspace, routes!(workspaces::http::hold))
        .mount(UseWorkspace, Workspace, routes!(workspaces::http::services))
        .mount(DeleteWorkspace, Workspace, routes!(workspaces::http::delete))
        .mount(UseWorkspace, Workspace, routes!(copies::http::fork))
        .mount(SeeWorkspace, Workspace, routes!(copies::http::list))
        .mount(UseWorkspace, Workspace, routes!(copies::http::create))
        .mount(UseWorkspace, Workspace, routes!(copies::http::restore))
        .mount(UseWorkspace, Workspace, routes!(copies::http::remove))
        .mount(UseWorkspace, Workspace, routes!(commands::http::run))
        .mount(SeeWorkspace, Workspace, routes!(commands::http::list))
        .mount(SeeWorkspace, Workspace, routes!(commands::http::show))
        .mount(UseWorkspace, Workspace, routes!(commands::http::cancel))
        .mount(SeeUsage, Workspace, routes!(usage::http::of_workspace))
        .mount(ManageProject, Organization, routes!(audit::http::list))
        .mount(ShareLinks, Workspace, routes!(links::http::issue))
        .mount(SeeWorkspace, Workspace, routes!(links::http::list))
        .mount(ShareLinks, Workspace, routes!(links::http::revoke))
        .mount(UseWorkspace, Workspace, routes!(links::http::open))
        .mount(ManageOrganization, Organization, routes!(keys::http::rotate))
        .mount(ActAsGateway, Organization, routes!(gateways::http::feed))
        .mount(ActAsGateway, Organization, routes!(gateways::http::codes))
        .mount(ActAsGateway, Organization, routes!(gateways::http::visits))
        .mount(ActAsGateway, Organization, routes!(gateways::http::inside))
        .mount(ActAsGateway, Organization, routes!(gateways::http::routes))
        .mount(ActAsGateway, Organization, routes!(gateways::http::storage))
        .mount(ActAsGateway, Organization, routes!(gateways::http::wakes))
        .mount(ActAsGateway, Organization, routes!(gateways::http::activity))
        .mount(ActAsHost, Organization, routes!(hosts::http::register))
        .mount(ActAsHost, Organization, routes!(hosts::http::sync))
        .mount(ActAsHost, Organization, routes!(hosts::http::pass))
        .mount(ActAsHost, Organization, routes!(secrets::http::give));
    let (router, description) = routes.router.split_for_parts();
    let router = router
        .fallback(|| async { super::errors::not_found("that route").into_response() })
        .method_not_allowed_fallback(|| async { super::errors::not_found("that route").into_response() })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(axum::Extension(std::sync::Arc::new(description.clone())))
        .with_state(app.clone());
    (router, description, routes.table)
}

/// A panic in a handler costs its request alone.
fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> axum::response::Response {
    tracing::error!("a request handler panicked");
    super::errors::Failure::from(envforge_api::problem::Problem::internal("the request could not be handled"))
        .into_response()
}
