-- Tables of the control plane. Ids are texts that print their kind; times are control-plane times.
CREATE EXTENSION IF NOT EXISTS btree_gist;

CREATE TABLE organizations (
    id         text PRIMARY KEY,
    slug       text NOT NULL UNIQUE,
    label      text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE principals (
    id              text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations,
    name            text NOT NULL,
    role            text NOT NULL CHECK (role IN ('owner', 'admin', 'developer', 'viewer', 'billing')),
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE hosts (
    id              text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations,
    epoch           bigint NOT NULL DEFAULT 0,
    -- Position of the newest intent; bumped in the transaction that changes an intent.
    intent_seq      bigint NOT NULL DEFAULT 0,
    registration    jsonb,
    registered_at   timestamptz,
    last_sync_at    timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
);

-- Bearer tokens by the SHA-256 of their text: each belongs to one principal or one host.
CREATE TABLE tokens (
    hash         bytea PRIMARY KEY,
    id           text NOT NULL UNIQUE,
    principal_id text REFERENCES principals,
    host_id      text REFERENCES hosts,
    expires_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CHECK ((principal_id IS NULL) <> (host_id IS NULL))
);

-- Control-plane time at which a host's boot clock stood at zero.
CREATE TABLE boot_anchors (
    host_id   text NOT NULL REFERENCES hosts,
    boot      text NOT NULL,
    zero_at   timestamptz NOT NULL,
    PRIMARY KEY (host_id, boot)
);

CREATE TABLE projects (
    id              text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations,
    slug            text NOT NULL,
    revision        bigint NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (organization_id, slug)
);

CREATE TABLE project_revisions (
    project_id text NOT NULL REFERENCES projects,
    revision   bigint NOT NULL,
    text       text NOT NULL,
    spec       jsonb NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, revision)
);

CREATE TABLE workspaces (
    id              text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations,
    project_id      text NOT NULL REFERENCES projects,
    host_id         text NOT NULL REFERENCES hosts,
    owner_id        text NOT NULL REFERENCES principals,
    slug            text NOT NULL,
    -- Its part of public host names.
    label           text NOT NULL,
    branch          text NOT NULL,
    from_ref        text,
    generation      bigint NOT NULL,
    -- The host's intent_seq at the last change.
    intent_seq      bigint NOT NULL,
    desired         jsonb NOT NULL,
    desired_at      timestamptz NOT NULL DEFAULT now(),
    -- Changes whenever anything that is shown changes.
    version         bigint NOT NULL DEFAULT 1,
    report          jsonb,
    report_epoch    bigint NOT NULL DEFAULT 0,
    report_seq      bigint NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    deleted_at      timestamptz
);
CREATE UNIQUE INDEX workspaces_slug ON workspaces (organization_id, slug) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX workspaces_label ON workspaces (organization_id, label) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX workspaces_branch ON workspaces (project_id, branch) WHERE deleted_at IS NULL;
CREATE INDEX workspaces_intents ON workspaces (host_id, intent_seq) WHERE deleted_at IS NULL;

CREATE TABLE commands (
    id           text PRIMARY KEY,
    workspace_id text NOT NULL REFERENCES workspaces,
    kind         text NOT NULL,
    state        text NOT NULL,
    generation   bigint NOT NULL,
    attempt      integer NOT NULL DEFAULT 0,
    requested_by text NOT NULL,
    trigger      text NOT NULL,
    service      text,
    -- What was asked beyond the kind: a run's specification, a service verb with its names.
    body         jsonb NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    exit_code    integer,
    reason       text
);
CREATE INDEX commands_newest ON commands (workspace_id, id DESC);
CREATE INDEX commands_under_way ON commands (workspace_id) WHERE finished_at IS NULL;

-- Once-only acts for a host, repeated in answers until it reports their end.
CREATE TABLE leases (
    id           text PRIMARY KEY,
    host_id      text NOT NULL REFERENCES hosts,
    act          jsonb NOT NULL,
    state        text NOT NULL DEFAULT 'queued',
    offered_at   timestamptz,
    answer       jsonb,
    reason       text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz
);
CREATE INDEX leases_open ON leases (host_id, id) WHERE finished_at IS NULL;

CREATE TABLE readings (
    instance     text NOT NULL,
    boot         text NOT NULL,
    n            bigint NOT NULL,
    workspace_id text NOT NULL,
    host_id      text NOT NULL,
    reading      jsonb NOT NULL,
    stored_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (instance, boot, n)
);

CREATE TABLE usage_sessions (
    id           text PRIMARY KEY,
    workspace_id text NOT NULL REFERENCES workspaces,
    instance     text NOT NULL UNIQUE,
    size         text NOT NULL,
    trigger      text NOT NULL,
    started_at   timestamptz NOT NULL,
    -- The last reading's time, while open.
    last_at      timestamptz NOT NULL,
    ended_at     timestamptz,
    observed_ms  bigint NOT NULL DEFAULT 0,
    reason       text,
    during       tstzrange GENERATED ALWAYS AS (tstzrange(started_at, ended_at)) STORED,
    EXCLUDE USING gist (workspace_id WITH =, during WITH &&)
);

-- What contradicts a stored session: set aside, counted nowhere, looked at by a person.
CREATE TABLE usage_quarantine (
    instance     text NOT NULL,
    boot         text NOT NULL,
    n            bigint NOT NULL,
    workspace_id text NOT NULL,
    reading      jsonb NOT NULL,
    reason       text NOT NULL,
    at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (instance, boot, n)
);

CREATE TABLE audit (
    id              text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations,
    at              timestamptz NOT NULL DEFAULT now(),
    actor           text NOT NULL,
    action          text NOT NULL,
    target          text NOT NULL,
    details         jsonb NOT NULL
);

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only';
END
$$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
