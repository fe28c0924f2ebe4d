-- `position` counts the collector's transactions. What it acknowledges at a position is in the store there, so nodes can tell what a
-- restore has lost: the positions above `lost_from`, up to `lost_to`. None of them is given again.
ALTER TABLE collector ADD COLUMN position BIGINT NOT NULL DEFAULT 0;
ALTER TABLE restoration ADD COLUMN lost_from BIGINT NOT NULL DEFAULT 0;
ALTER TABLE restoration ADD COLUMN lost_to BIGINT NOT NULL DEFAULT 0;

-- Results that nodes have sent again since a restore (`counter`), and whether those were all that it had lost of them.
CREATE TABLE resent (
  node BIGINT PRIMARY KEY REFERENCES node, counter BIGINT NOT NULL, results BIGINT NOT NULL, complete BIGINT NOT NULL);

-- Results that are stored under another number than they had first: what arrives late under the first one is the same.
CREATE TABLE renumbered (
  ledger BIGINT NOT NULL REFERENCES ledger, priority BIGINT NOT NULL, sequence BIGINT NOT NULL, check_value BIGINT NOT NULL,
  received_at DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (ledger, priority, sequence, check_value));
CREATE INDEX renumbered_received_at ON renumbered (received_at);
