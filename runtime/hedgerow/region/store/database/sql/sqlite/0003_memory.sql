-- Usual memory of a node's process before a change.
ALTER TABLE rollout_node ADD COLUMN memory_bytes INTEGER NOT NULL DEFAULT 0;
