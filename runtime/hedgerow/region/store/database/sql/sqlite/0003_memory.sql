-- What a node's process usually took before it was given something.
ALTER TABLE rollout_node ADD COLUMN memory_bytes INTEGER NOT NULL DEFAULT 0;
