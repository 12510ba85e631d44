CREATE TABLE jobs (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title      text NOT NULL CHECK (length(title) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now(),
    sent_at    timestamptz
);

-- What the mailer looks for when it starts.
CREATE INDEX jobs_waiting ON jobs (id) WHERE sent_at IS NULL;
