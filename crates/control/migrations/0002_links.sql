-- Dev hosts, signed links, signing keys, gateways and what they carried.

-- Every dev host there is. Made once, looked up ever after; gone with its workspace.
CREATE TABLE dev_hosts (
    label        text PRIMARY KEY,
    workspace_id text NOT NULL REFERENCES workspaces,
    service      text NOT NULL,
    -- A further named port of the service; '' is its main one.
    port         text NOT NULL,
    UNIQUE (workspace_id, service, port)
);

-- What changed since a gateway asked last is found by the transaction that changed it: everything that was not
-- finished when a feed was read has a number that is not below that feed's `pg_snapshot_xmin`. No counter is shared,
-- so that no two reports wait for one another.
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed := pg_current_xact_id();
    RETURN NEW;
END
$$;

ALTER TABLE workspaces ADD COLUMN changed xid8 NOT NULL DEFAULT pg_current_xact_id();
CREATE INDEX workspaces_changed ON workspaces (organization_id, changed);
CREATE TRIGGER workspaces_note_change BEFORE UPDATE ON workspaces
    FOR EACH ROW WHEN (OLD.version <> NEW.version) EXECUTE FUNCTION note_change();

CREATE TABLE links (
    id              text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations,
    workspace_id    text NOT NULL REFERENCES workspaces,
    service         text NOT NULL,
    -- The dev host it opens.
    label           text NOT NULL,
    families        jsonb NOT NULL,
    issued_by       text NOT NULL,
    issued_at       timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL,
    revoked_at      timestamptz,
    changed         xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX links_of_workspace ON links (workspace_id, expires_at);
CREATE INDEX links_revoked ON links (organization_id, changed) WHERE revoked_at IS NOT NULL;
CREATE TRIGGER links_note_change BEFORE UPDATE ON links FOR EACH ROW EXECUTE FUNCTION note_change();

-- What opens a dev host once: by the SHA-256 of its text, with the visit that it becomes.
CREATE TABLE visit_codes (
    hash       bytea PRIMARY KEY,
    label      text NOT NULL,
    visit      jsonb NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX visit_codes_end ON visit_codes (expires_at);

-- The newest key that has begun signs; all that have not ended verify.
CREATE TABLE signing_keys (
    id          text PRIMARY KEY,
    public_key  text NOT NULL,
    -- Under the master key of the state directory.
    sealed      text NOT NULL,
    signs_from  timestamptz NOT NULL,
    -- When the last statement that it may have signed has expired.
    ends_at     timestamptz,
    changed     xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE TRIGGER signing_keys_note_change BEFORE UPDATE ON signing_keys FOR EACH ROW EXECUTE FUNCTION note_change();

CREATE TABLE gateways (
    id              text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations,
    last_seen_at    timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE tokens ADD COLUMN gateway_id text REFERENCES gateways;
ALTER TABLE tokens DROP CONSTRAINT tokens_check;
ALTER TABLE tokens ADD CONSTRAINT tokens_holder CHECK (num_nonnulls(principal_id, host_id, gateway_id) = 1);

-- What gateways carried, each span once.
CREATE TABLE link_activity (
    id            text PRIMARY KEY,
    gateway_id    text NOT NULL REFERENCES gateways,
    workspace_id  text NOT NULL REFERENCES workspaces,
    holder        jsonb,
    family        text,
    from_at       timestamptz NOT NULL,
    to_at         timestamptz NOT NULL,
    requests      bigint NOT NULL,
    socket_octets bigint NOT NULL,
    awake_seconds bigint NOT NULL,
    counts_at     timestamptz,
    stored_at     timestamptz NOT NULL DEFAULT now()
);

-- The last moment of traffic that counts against idleness, and the last one that a host's answer carried.
CREATE TABLE link_traffic (
    workspace_id text PRIMARY KEY REFERENCES workspaces,
    last_at      timestamptz NOT NULL,
    told_at      timestamptz NOT NULL DEFAULT '-infinity'
);

-- Seconds in which gateways saw a runtime awake, beside what its meter says.
CREATE TABLE gateway_awake (
    workspace_id text NOT NULL REFERENCES workspaces,
    -- First day, in UTC.
    month        date NOT NULL,
    seconds      bigint NOT NULL,
    PRIMARY KEY (workspace_id, month)
);
