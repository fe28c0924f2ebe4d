-- The complete desired document of a node; each change is a new generation. `published` is the one the broker has.
-- `pins` are models that rollouts leave alone: {"MODEL": {"who": …, "why": …, "at": …}}.
CREATE TABLE desired (
  node BIGINT PRIMARY KEY REFERENCES node, generation BIGINT NOT NULL, published BIGINT NOT NULL,
  document TEXT NOT NULL, pins TEXT NOT NULL);
CREATE INDEX desired_unpublished ON desired (node) WHERE published < generation;

-- `plan` is the file it was started with; `models` the versions it selects: {"MODEL": {"ref": …, "files": […]}}; `waves` their titles.
CREATE TABLE rollout (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT NOT NULL UNIQUE,
  plan TEXT NOT NULL, models TEXT NOT NULL, waves TEXT NOT NULL,
  who TEXT NOT NULL, why TEXT NOT NULL, started_at DOUBLE PRECISION NOT NULL, changed_at DOUBLE PRECISION NOT NULL, ended_at DOUBLE PRECISION,
  phase TEXT NOT NULL, wave BIGINT NOT NULL, soaking_since DOUBLE PRECISION, forgiven BIGINT NOT NULL,
  turned_at DOUBLE PRECISION, ending TEXT, because TEXT NOT NULL, waits TEXT NOT NULL);

-- A node's task in a rollout; `state` is one of AWS IoT Jobs.
CREATE TABLE rollout_node (
  rollout BIGINT NOT NULL REFERENCES rollout, node BIGINT NOT NULL REFERENCES node,
  wave BIGINT NOT NULL, state TEXT NOT NULL, late BIGINT NOT NULL, generation BIGINT NOT NULL, given_at DOUBLE PRECISION NOT NULL,
  prior TEXT NOT NULL, p99_ms TEXT NOT NULL, back TEXT NOT NULL, back_generation BIGINT NOT NULL,
  code TEXT NOT NULL, reason TEXT NOT NULL,
  PRIMARY KEY (rollout, node));

-- Operators' requests to the service, and its replies.
CREATE TABLE intent (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at DOUBLE PRECISION NOT NULL, expires_at DOUBLE PRECISION NOT NULL,
  who TEXT NOT NULL, why TEXT NOT NULL, verb TEXT NOT NULL, args TEXT NOT NULL,
  answered_at DOUBLE PRECISION, accepted BIGINT, answer TEXT);
CREATE INDEX intent_open ON intent (id) WHERE answered_at IS NULL;

-- The audit log: who did what, and why.
CREATE TABLE audit (
  ingest BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at DOUBLE PRECISION NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL,
  action TEXT NOT NULL, rollout TEXT, detail TEXT NOT NULL);

CREATE INDEX said_new ON said (channel, received_at);
