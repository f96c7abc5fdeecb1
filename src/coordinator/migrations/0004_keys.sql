-- Keys that a member has a certificate for and was not heard with yet: until then its present ones are good.
CREATE TABLE rekeys (
    identity        BLOB    NOT NULL PRIMARY KEY,       -- the present one
    next            BLOB    NOT NULL UNIQUE,
    wireguard_key   BLOB    NOT NULL UNIQUE,
    asked_at        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Identities that a member has no more, until the last certificate of each has ended.
CREATE TABLE former_identities (
    identity        BLOB    NOT NULL PRIMARY KEY,
    host            INTEGER NOT NULL,                   -- the member's place, which stays its own
    replaced_at     INTEGER NOT NULL,
    ends_at         INTEGER NOT NULL,
    listed_at       INTEGER                             -- NULL: still to be put on the revocation list
) STRICT, WITHOUT ROWID;
