-- Restores from a backup: what was stored between `backup_at` and `at` is lost, and `generation_floor` is above each generation
-- of a desired document that may have been given then.
CREATE TABLE restoration (
  counter BIGINT PRIMARY KEY, at DOUBLE PRECISION NOT NULL, backup_at DOUBLE PRECISION NOT NULL, generation_floor BIGINT NOT NULL);
