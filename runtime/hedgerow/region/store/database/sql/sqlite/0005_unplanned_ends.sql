-- Whether a node that is offline said so itself, and how often it ended without saying so.
ALTER TABLE node ADD COLUMN stopped INTEGER;
ALTER TABLE node ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;
