-- Marks to find a VM by, a JSON object of strings; and when it goes by itself.
ALTER TABLE vms ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE vms ADD COLUMN ttl_ms INTEGER;
ALTER TABLE vms ADD COLUMN idle_timeout_ms INTEGER;
