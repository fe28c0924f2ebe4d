-- Usual share of a node's frames that were dead-lettered before a change.
ALTER TABLE rollout_node ADD COLUMN dead_share DOUBLE PRECISION NOT NULL DEFAULT 0;
