-- Whether a node that is offline said so itself, and how often it ended without saying so.
ALTER TABLE node ADD COLUMN stopped BIGINT;
ALTER TABLE node ADD COLUMN crashes BIGINT NOT NULL DEFAULT 0;
