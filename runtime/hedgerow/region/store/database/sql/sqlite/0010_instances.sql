-- Runs of nodes, the last few of each: where they took place, as they say themselves. `last_at` of the run that is the node's
-- `health_session` is the node's `health_at`.
CREATE TABLE instance (
  node INTEGER NOT NULL REFERENCES node, session TEXT NOT NULL, first_at REAL NOT NULL, last_at REAL NOT NULL, started_at REAL,
  host TEXT NOT NULL, address TEXT NOT NULL, machine TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL,
  PRIMARY KEY (node, session));

-- What two processes use at once: a node's name, or the key or the state folder of a node (`other`: the other node).
CREATE TABLE twin (
  node INTEGER NOT NULL REFERENCES node, kind TEXT NOT NULL, other INTEGER REFERENCES node, since REAL NOT NULL, last_at REAL NOT NULL,
  sessions TEXT NOT NULL,
  PRIMARY KEY (node, kind));

-- The id of this store, and other services of this region that run at the same time.
CREATE TABLE store_identity (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);
CREATE TABLE other_service (
  instance TEXT PRIMARY KEY, store TEXT NOT NULL, host TEXT NOT NULL, address TEXT NOT NULL, since REAL NOT NULL, last_at REAL NOT NULL);
INSERT INTO store_identity VALUES (1, lower(hex(randomblob(8))));
