-- What the daemon has to remember about itself: scope, boot_id, run.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- One row for each VM from the moment its name and block are taken until nothing of it is left.
CREATE TABLE vms (
    name           TEXT PRIMARY KEY,
    vm_group       TEXT    NOT NULL,
    -- Number of the /30 block: its network address without the last two bits.
    block          INTEGER NOT NULL UNIQUE,
    -- For people: the guest's address.
    address        TEXT GENERATED ALWAYS AS (
                       printf('%d.%d.%d.%d', block >> 22, block >> 14 & 255, block >> 6 & 255,
                              (block << 2 & 255) | 2)) VIRTUAL,
    vcpu           INTEGER NOT NULL,
    ram_mib        INTEGER NOT NULL,
    image          TEXT    NOT NULL,
    disk_bytes     INTEGER NOT NULL,
    created_ms     INTEGER NOT NULL,
    intent         TEXT    NOT NULL CHECK (intent IN ('create', 'run', 'delete')),
    -- The VMM and its start in clock ticks since boot: together they name one process of this boot.
    vmm_pid        INTEGER,
    vmm_start      INTEGER,
    ready_after_ms INTEGER,
    userdata_exit  INTEGER,
    -- Which run of the daemon made it.
    run            INTEGER NOT NULL,
    CHECK ((vmm_pid IS NULL) = (vmm_start IS NULL))
) STRICT;
