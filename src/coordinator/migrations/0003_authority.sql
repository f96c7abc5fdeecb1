-- The authorities that the mesh has, will have or had, in the order in which they came. Their keys are files.
CREATE TABLE authorities (
    place           INTEGER NOT NULL PRIMARY KEY,
    certificates    TEXT    NOT NULL,                   -- PEM: its own, then those above it, the root last
    standing        TEXT    NOT NULL CHECK (standing IN ('next', 'issuing', 'leaving', 'retired')),
    since           INTEGER NOT NULL,
    published       INTEGER NOT NULL                    -- the first list that named it
) STRICT;

CREATE UNIQUE INDEX one_authority_issues ON authorities (standing) WHERE standing = 'issuing';

-- Certificates of later roots' keys, signed by earlier roots, in the order in which they came.
CREATE TABLE crosses (
    place           INTEGER NOT NULL PRIMARY KEY,
    certificate     TEXT    NOT NULL                    -- PEM
) STRICT;
