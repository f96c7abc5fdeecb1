-- Whether joins with a token wait for an operator.
ALTER TABLE tokens ADD COLUMN approve INTEGER NOT NULL DEFAULT 0 CHECK (approve IN (0, 1));

-- What a machine called itself when it used a token, and from where: a stolen token shows by it.
ALTER TABLE token_uses ADD COLUMN name TEXT;
ALTER TABLE token_uses ADD COLUMN source TEXT;

-- Machines that wait for an operator, and what the operator said. What is approved is this identity with this name and
-- this WireGuard key by this token, and nothing else.
CREATE TABLE joins (
    identity        BLOB    NOT NULL PRIMARY KEY,
    name            TEXT    NOT NULL,
    wireguard_key   BLOB    NOT NULL,
    token           TEXT    NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    source          TEXT    NOT NULL,
    standing        TEXT    NOT NULL DEFAULT 'waiting' CHECK (standing IN ('waiting', 'approved', 'declined')),
    asked_at        INTEGER NOT NULL,
    heard_at        INTEGER NOT NULL,
    ends_at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX joins_by_token ON joins (token);

-- What was done, by whom, to whom, from where. Rows are only ever added; of more than 200000 the oldest go.
CREATE TABLE audit (
    id              INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at              INTEGER NOT NULL,
    kind            TEXT    NOT NULL,
    actor           TEXT    NOT NULL,                   -- JSON
    source          TEXT,
    name            TEXT,
    identity        BLOB,
    token           TEXT,
    detail          TEXT    NOT NULL                    -- JSON
) STRICT;

CREATE TRIGGER audit_rows_are_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'rows of the audit are not changed');
END;

-- Inserting over a row that is there would replace it without a word from the trigger above.
CREATE TRIGGER audit_rows_are_not_replaced BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'rows of the audit are not changed');
END;

CREATE TRIGGER audit_rows_are_not_removed BEFORE DELETE ON audit
WHEN OLD.id > (SELECT MAX(id) FROM audit) - 200000
BEGIN
    SELECT RAISE(ABORT, 'rows of the audit are removed only when there are 200000 newer ones');
END;
