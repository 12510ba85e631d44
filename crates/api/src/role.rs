//! Who may do what: the role matrix as data.

use crate::states::words;
use serde::{Deserialize, Serialize};

words!(
    /// A person's role in an organization.
    Role, "role" {
        /// May do everything.
        Owner = "owner",
        /// Everything but ending the organization.
        Admin = "admin",
        /// Works in workspaces.
        Developer = "developer",
        /// Looks.
        Viewer = "viewer",
        /// Sees what is billed.
        Billing = "billing",
    }
);

words!(
    /// What a route does, for authorization. Every route names exactly one.
    Action, "action" {
        /// Members, roles, identity provider, hosts, root policy.
        ManageOrganization = "manage_organization",
        /// Delete the organization, transfer ownership.
        EndOrganization = "end_organization",
        /// Projects, bindings, resource modes, secrets, caps, schedules of others.
        ManageProject = "manage_project",
        /// Create a workspace, open its shell, wake, sleep, run commands, read logs.
        UseWorkspace = "use_workspace",
        /// Delete a workspace.
        DeleteWorkspace = "delete_workspace",
        /// Issue and revoke links.
        ShareLinks = "share_links",
        /// See workspace and project state, receipts, safe resource outputs.
        SeeWorkspace = "see_workspace",
        /// See usage and billing.
        SeeUsage = "see_usage",
        /// Know who one is.
        SeeSelf = "see_self",
        /// Speak the host protocol.
        ActAsHost = "act_as_host",
        /// Speak the gateway protocol.
        ActAsGateway = "act_as_gateway",
        /// Read what anyone may read (health, OpenAPI document). The only action without a principal.
        Public = "public",
    }
);

/// The matrix's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On everything of the organization.
    Yes,
    /// Only on what the principal owns.
    Own,
    /// Never.
    No,
}

impl Role {
    /// The role matrix of the product contract.
    #[must_use]
    pub const fn may(self, action: Action) -> Verdict {
        use Action::{
            ActAsGateway, ActAsHost, DeleteWorkspace, EndOrganization, ManageOrganization, ManageProject, Public,
            SeeSelf, SeeUsage, SeeWorkspace, ShareLinks, UseWorkspace,
        };
        use Role::{Admin, Billing, Developer, Owner, Viewer};
        use Verdict::{No, Own, Yes};
        match (action, self) {
            (Public | SeeSelf, _) => Yes,
            (ActAsHost | ActAsGateway, _) => No,
            (EndOrganization, Owner) => Yes,
            (EndOrganization, Admin | Developer | Viewer | Billing) => No,
            (ManageOrganization | ManageProject, Owner | Admin) => Yes,
            (ManageOrganization | ManageProject, Developer | Viewer | Billing) => No,
            (UseWorkspace, Owner | Admin | Developer) => Yes,
            (UseWorkspace, Viewer | Billing) => No,
            (DeleteWorkspace | ShareLinks, Owner | Admin) => Yes,
            (DeleteWorkspace | ShareLinks, Developer) => Own,
            (DeleteWorkspace | ShareLinks, Viewer | Billing) => No,
            (SeeWorkspace, Owner | Admin | Developer | Viewer) => Yes,
            (SeeWorkspace, Billing) => No,
            (SeeUsage, Owner | Admin | Billing) => Yes,
            (SeeUsage, Developer) => Own,
            (SeeUsage, Viewer) => No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_with_a_role_speaks_the_protocols_of_machines() {
        let machines = [Action::ActAsHost, Action::ActAsGateway];
        assert!(machines.iter().all(|action| Role::ALL.iter().all(|role| role.may(*action) == Verdict::No)));
    }

    #[test]
    fn billing_sees_the_bill_and_nothing_of_the_work() {
        assert_eq!(Role::Billing.may(Action::SeeUsage), Verdict::Yes);
        assert_eq!(Role::Billing.may(Action::SeeWorkspace), Verdict::No);
        assert_eq!(Role::Viewer.may(Action::SeeUsage), Verdict::No);
        assert_eq!(Role::Developer.may(Action::SeeUsage), Verdict::Own);
    }
}
