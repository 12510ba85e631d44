-- Secrets: sealed values by name, of a project or (without one) of the whole organization.
CREATE TABLE secrets (
    organization_id text NOT NULL REFERENCES organizations,
    project_id text REFERENCES projects,
    name text NOT NULL,
    -- The key that it is sealed with; the keys themselves are files of the control plane.
    key_id text NOT NULL,
    sealed text NOT NULL,
    set_at timestamptz NOT NULL DEFAULT now(),
    set_by text NOT NULL,
    UNIQUE NULLS NOT DISTINCT (organization_id, project_id, name)
);
