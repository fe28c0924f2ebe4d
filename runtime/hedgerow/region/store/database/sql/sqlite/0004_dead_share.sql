-- Usual share of a node's frames that were dead-lettered before a change.
ALTER TABLE rollout_node ADD COLUMN dead_share REAL NOT NULL DEFAULT 0;
