-- Which request made which VM: whoever asks again under the same key gets the same VM.
CREATE TABLE idempotency_keys (
    key        TEXT    PRIMARY KEY,
    -- SHA-1 of the request.
    request    TEXT    NOT NULL,
    vm         TEXT    NOT NULL,
    -- Of the VM: another one may have its name later.
    created_ms INTEGER NOT NULL,
    at_ms      INTEGER NOT NULL
) STRICT;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (at_ms);
CREATE INDEX idempotency_keys_by_vm ON idempotency_keys (vm);
