-- Restores from a backup: what was stored between `backup_at` and `at` is lost, and `generation_floor` is above each generation
-- of a desired document that may have been given then.
CREATE TABLE restoration (
  counter INTEGER PRIMARY KEY, at REAL NOT NULL, backup_at REAL NOT NULL, generation_floor INTEGER NOT NULL);
