-- The first-boot script, from the request until it is known how it ended: a daemon that adopts the
-- VM may have to hand it over once more. Secrets may be in it, as in the rest of this directory.
ALTER TABLE vms ADD COLUMN userdata TEXT;
