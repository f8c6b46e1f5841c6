-- Who may use the API over TCP.
CREATE TABLE tokens (
    -- Eight hexadecimal digits; the token begins with them.
    id           TEXT    PRIMARY KEY,
    name         TEXT    NOT NULL,
    -- Separated by spaces: admin, group:NAME:ro, group:NAME:rw.
    scopes       TEXT    NOT NULL,
    -- SHA-256 of the 256 random bits; those are nowhere.
    hash         BLOB    NOT NULL,
    created_ms   INTEGER NOT NULL,
    expires_ms   INTEGER,
    last_used_ms INTEGER,
    revoked_ms   INTEGER
) STRICT;
