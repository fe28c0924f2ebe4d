-- Runs of nodes, the last few of each: where they took place, as they say themselves. `last_at` of the run that is the node's
-- `health_session` is the node's `health_at`.
CREATE TABLE instance (
  node BIGINT NOT NULL REFERENCES node, session TEXT NOT NULL, first_at DOUBLE PRECISION NOT NULL, last_at DOUBLE PRECISION NOT NULL, started_at DOUBLE PRECISION,
  host TEXT NOT NULL, address TEXT NOT NULL, machine TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL,
  PRIMARY KEY (node, session));

-- What two processes use at once: a node's name, or the key or the state folder of a node (`other`: the other node).
CREATE TABLE twin (
  node BIGINT NOT NULL REFERENCES node, kind TEXT NOT NULL, other BIGINT REFERENCES node, since DOUBLE PRECISION NOT NULL, last_at DOUBLE PRECISION NOT NULL,
  sessions TEXT NOT NULL,
  PRIMARY KEY (node, kind));

-- The id of this store, and other services of this region that run at the same time.
CREATE TABLE store_identity (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);
CREATE TABLE other_service (
  instance TEXT PRIMARY KEY, store TEXT NOT NULL, host TEXT NOT NULL, address TEXT NOT NULL, since DOUBLE PRECISION NOT NULL, last_at DOUBLE PRECISION NOT NULL);
INSERT INTO store_identity VALUES (1, substr(md5(random()::text || clock_timestamp()::text), 1, 16));
