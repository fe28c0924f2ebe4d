-- What share of a node's frames usually died before it was given something.
ALTER TABLE rollout_node ADD COLUMN dead_share DOUBLE PRECISION NOT NULL DEFAULT 0;
