-- Lists of a group that were changed while the daemon ran, and those the file had then. They hold
-- after a crash, so that no policy lapses, as long as the file says the same.
CREATE TABLE group_lists (
    name       TEXT PRIMARY KEY,
    drop_list  TEXT NOT NULL,
    allow_list TEXT NOT NULL,
    file_drop  TEXT NOT NULL,
    file_allow TEXT NOT NULL
) STRICT;
