-- Who has joined. Rows of revoked members stay until their last certificate has ended, so that nobody else gets an
-- address that somebody still holds a valid certificate for.
CREATE TABLE members (
    identity        BLOB    NOT NULL PRIMARY KEY,
    name            TEXT    NOT NULL,
    host            INTEGER NOT NULL UNIQUE,            -- address = network + host
    wireguard_key   BLOB    NOT NULL,
    groups          TEXT    NOT NULL DEFAULT '[]',      -- JSON
    services        TEXT,                               -- JSON; NULL: any
    joined_at       INTEGER NOT NULL,
    revoked_at      INTEGER,
    -- What it last said about itself. Written in batches.
    record          BLOB,
    capabilities    TEXT,                               -- JSON
    dht_port        INTEGER,
    last_heartbeat  INTEGER
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX members_by_name ON members (name) WHERE revoked_at IS NULL;

-- Every WireGuard key ever bound to an identity: a key belongs to one identity for good.
CREATE TABLE wireguard_keys (
    wireguard_key   BLOB    NOT NULL PRIMARY KEY,
    identity        BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
    serial          BLOB    NOT NULL PRIMARY KEY,
    identity        BLOB    NOT NULL,
    issued_at       INTEGER NOT NULL,
    not_after       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX certificates_by_identity ON certificates (identity);

CREATE TABLE tokens (
    id              TEXT    NOT NULL PRIMARY KEY,
    hash            BLOB    NOT NULL UNIQUE,            -- SHA-256 of the secret; the secret is nowhere
    name            TEXT,
    groups          TEXT    NOT NULL,                   -- JSON
    services        TEXT    NOT NULL,                   -- JSON; empty: any
    uses            INTEGER NOT NULL CHECK (uses > 0),
    used            INTEGER NOT NULL DEFAULT 0 CHECK (used <= uses),
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    revoked_at      INTEGER
) STRICT, WITHOUT ROWID;

-- Who joined with which token: the same machine may repeat a join whose answer it never got.
CREATE TABLE token_uses (
    token           TEXT    NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    identity        BLOB    NOT NULL,
    used_at         INTEGER NOT NULL,
    PRIMARY KEY (token, identity)
) STRICT, WITHOUT ROWID;

-- What is on the revocation list, until the certificates concerned have ended.
CREATE TABLE revocations (
    kind            TEXT    NOT NULL CHECK (kind IN ('serial', 'identity')),
    value           BLOB    NOT NULL,
    revoked_at      INTEGER NOT NULL,
    ends_at         INTEGER NOT NULL,
    PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;

-- Single facts: the mesh's authority, the list in force and its number, when members were last written.
CREATE TABLE facts (
    key             TEXT    NOT NULL PRIMARY KEY,
    value           BLOB    NOT NULL
) STRICT, WITHOUT ROWID;
