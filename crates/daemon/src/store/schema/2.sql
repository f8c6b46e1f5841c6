-- The VM's own lists, which narrow its group's policy: JSON arrays of entries as written.
ALTER TABLE vms ADD COLUMN own_drop TEXT NOT NULL DEFAULT '[]';
ALTER TABLE vms ADD COLUMN own_allow TEXT NOT NULL DEFAULT '[]';
