-- The complete desired document of a node; each change is a new generation. `published` is the one the broker has.
-- `pins` are models that rollouts leave alone: {"MODEL": {"who": …, "why": …, "at": …}}.
CREATE TABLE desired (
  node INTEGER PRIMARY KEY REFERENCES node, generation INTEGER NOT NULL, published INTEGER NOT NULL,
  document TEXT NOT NULL, pins TEXT NOT NULL);
CREATE INDEX desired_unpublished ON desired (node) WHERE published < generation;

-- `plan` is the file it was started with; `models` the versions it selects: {"MODEL": {"ref": …, "files": […]}}; `waves` their titles.
CREATE TABLE rollout (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
  plan TEXT NOT NULL, models TEXT NOT NULL, waves TEXT NOT NULL,
  who TEXT NOT NULL, why TEXT NOT NULL, started_at REAL NOT NULL, changed_at REAL NOT NULL, ended_at REAL,
  phase TEXT NOT NULL, wave INTEGER NOT NULL, soaking_since REAL, forgiven INTEGER NOT NULL,
  turned_at REAL, ending TEXT, because TEXT NOT NULL, waits TEXT NOT NULL);

-- A node's task in a rollout; `state` is one of AWS IoT Jobs.
CREATE TABLE rollout_node (
  rollout INTEGER NOT NULL REFERENCES rollout, node INTEGER NOT NULL REFERENCES node,
  wave INTEGER NOT NULL, state TEXT NOT NULL, late INTEGER NOT NULL, generation INTEGER NOT NULL, given_at REAL NOT NULL,
  prior TEXT NOT NULL, p99_ms TEXT NOT NULL, back TEXT NOT NULL, back_generation INTEGER NOT NULL,
  code TEXT NOT NULL, reason TEXT NOT NULL,
  PRIMARY KEY (rollout, node)) WITHOUT ROWID;

-- Operators' requests to the service, and its replies.
CREATE TABLE intent (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, expires_at REAL NOT NULL,
  who TEXT NOT NULL, why TEXT NOT NULL, verb TEXT NOT NULL, args TEXT NOT NULL,
  answered_at REAL, accepted INTEGER, answer TEXT);
CREATE INDEX intent_open ON intent (id) WHERE answered_at IS NULL;

-- The audit log: who did what, and why.
CREATE TABLE audit (
  ingest INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL,
  action TEXT NOT NULL, rollout TEXT, detail TEXT NOT NULL);

CREATE INDEX said_new ON said (channel, received_at);
