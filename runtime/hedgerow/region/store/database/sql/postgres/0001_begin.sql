-- Times are Unix seconds (UTC). `ingest` is the order of storage.
CREATE TABLE node (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  region TEXT NOT NULL, site TEXT NOT NULL, name TEXT NOT NULL,
  first_heard_at DOUBLE PRECISION NOT NULL, heard_at DOUBLE PRECISION,
  session TEXT, online BIGINT, status_at DOUBLE PRECISION,
  health_at DOUBLE PRECISION, health_state TEXT, health_reasons TEXT,
  health_session TEXT, bytes_in BIGINT NOT NULL DEFAULT 0, bytes_in_now BIGINT NOT NULL DEFAULT 0,
  messages_up BIGINT NOT NULL, bytes_up BIGINT NOT NULL,
  results BIGINT NOT NULL, durable BIGINT NOT NULL, repeats BIGINT NOT NULL,
  captured_at DOUBLE PRECISION, stored_at DOUBLE PRECISION,
  pinged_at DOUBLE PRECISION, answered_at DOUBLE PRECISION, round_trip_s DOUBLE PRECISION, clock_offset_s DOUBLE PRECISION, unanswered BIGINT NOT NULL,
  UNIQUE (region, site, name));

-- The last message of each node on the channels status and reported.
CREATE TABLE said (
  node BIGINT NOT NULL REFERENCES node, channel TEXT NOT NULL, received_at DOUBLE PRECISION NOT NULL, payload BYTEA NOT NULL,
  PRIMARY KEY (node, channel));

-- Numbers received of an outbox's epoch: {"PRIORITY": [[first, last], …]}.
CREATE TABLE ledger (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, node BIGINT NOT NULL REFERENCES node, epoch TEXT NOT NULL, state TEXT NOT NULL,
  UNIQUE (node, epoch));

-- A result without a ledger is not durable.
CREATE TABLE result (
  ingest BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  node BIGINT NOT NULL REFERENCES node, pipeline TEXT NOT NULL,
  ledger BIGINT REFERENCES ledger, priority BIGINT, sequence BIGINT,
  said_id TEXT, captured_at DOUBLE PRECISION NOT NULL, received_at DOUBLE PRECISION NOT NULL,
  content_type TEXT NOT NULL, properties TEXT, size BIGINT NOT NULL, payload BYTEA NOT NULL);
CREATE UNIQUE INDEX result_number ON result (ledger, priority, sequence) WHERE ledger IS NOT NULL;
CREATE UNIQUE INDEX result_said_id ON result (node, pipeline, said_id) WHERE ledger IS NULL AND said_id IS NOT NULL;
CREATE INDEX result_captured_at ON result (captured_at, ingest);

-- Numbers that an outbox will never send. `lost` of them are lost, by reason; the others were received before.
CREATE TABLE gap (
  ingest BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  ledger BIGINT NOT NULL REFERENCES ledger, priority BIGINT NOT NULL,
  first BIGINT NOT NULL, last BIGINT NOT NULL, lost BIGINT NOT NULL, reasons TEXT NOT NULL, previous TEXT NOT NULL,
  received_at DOUBLE PRECISION NOT NULL,
  UNIQUE (ledger, priority, first, last));

CREATE TABLE event (
  ingest BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  node BIGINT NOT NULL REFERENCES node, kind TEXT NOT NULL, said_id TEXT,
  at DOUBLE PRECISION NOT NULL, received_at DOUBLE PRECISION NOT NULL, payload BYTEA NOT NULL);
CREATE UNIQUE INDEX event_said_id ON event (node, said_id) WHERE said_id IS NOT NULL;

CREATE TABLE health (
  ingest BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  node BIGINT NOT NULL REFERENCES node, at DOUBLE PRECISION NOT NULL, received_at DOUBLE PRECISION NOT NULL, payload BYTEA NOT NULL);
CREATE INDEX health_node ON health (node, ingest);

-- The newest rejected messages, and the number of rejections by reason.
CREATE TABLE rejected (
  ingest BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  received_at DOUBLE PRECISION NOT NULL, topic TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL, number TEXT,
  size BIGINT NOT NULL, payload BYTEA NOT NULL);
CREATE TABLE rejections (reason TEXT PRIMARY KEY, count BIGINT NOT NULL);

-- The collector, and the total size of results.
CREATE TABLE collector (
  one BIGINT PRIMARY KEY CHECK (one = 1), region TEXT NOT NULL,
  started_at DOUBLE PRECISION NOT NULL, beat_at DOUBLE PRECISION NOT NULL, connected BIGINT NOT NULL, version TEXT NOT NULL,
  silent_after_s DOUBLE PRECISION NOT NULL, canary_every_s DOUBLE PRECISION,
  stored_bytes BIGINT NOT NULL);

-- For humans: results with names and readable times.
CREATE VIEW results AS
SELECT r.ingest, n.region, n.site, n.name AS node, r.pipeline, l.epoch, r.priority, r.sequence, r.said_id AS id,
       to_timestamp(r.captured_at) AS captured_at,
       to_timestamp(r.received_at) AS received_at,
       r.content_type, r.payload
FROM result r JOIN node n ON n.id = r.node LEFT JOIN ledger l ON l.id = r.ledger;
