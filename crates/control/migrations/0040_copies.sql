-- Copies of workspaces: what one begins as, and what making a copy cost.
ALTER TABLE workspaces ADD COLUMN fork_of text REFERENCES workspaces;
ALTER TABLE commands ADD COLUMN copied jsonb;
CREATE INDEX commands_forks ON commands ((body -> 'fork' ->> 'workspace')) WHERE kind = 'FORK_WORKSPACE' AND finished_at IS NULL;
