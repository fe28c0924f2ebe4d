-- Times are Unix seconds (UTC). `ingest` is the order of storage.
CREATE TABLE node (
  id INTEGER PRIMARY KEY,
  region TEXT NOT NULL, site TEXT NOT NULL, name TEXT NOT NULL,
  first_heard_at REAL NOT NULL, heard_at REAL,
  session TEXT, online INTEGER, status_at REAL,
  health_at REAL, health_state TEXT, health_reasons TEXT,
  health_session TEXT, bytes_in INTEGER NOT NULL DEFAULT 0, bytes_in_now INTEGER NOT NULL DEFAULT 0,
  messages_up INTEGER NOT NULL, bytes_up INTEGER NOT NULL,
  results INTEGER NOT NULL, durable INTEGER NOT NULL, repeats INTEGER NOT NULL,
  captured_at REAL, stored_at REAL,
  pinged_at REAL, answered_at REAL, round_trip_s REAL, clock_offset_s REAL, unanswered INTEGER NOT NULL,
  UNIQUE (region, site, name));

-- The last message of each node on the channels status and reported.
CREATE TABLE said (
  node INTEGER NOT NULL REFERENCES node, channel TEXT NOT NULL, received_at REAL NOT NULL, payload BLOB NOT NULL,
  PRIMARY KEY (node, channel));

-- Numbers received of an outbox's epoch: {"PRIORITY": [[first, last], …]}.
CREATE TABLE ledger (
  id INTEGER PRIMARY KEY, node INTEGER NOT NULL REFERENCES node, epoch TEXT NOT NULL, state TEXT NOT NULL,
  UNIQUE (node, epoch));

-- A result without a ledger is not durable.
CREATE TABLE result (
  ingest INTEGER PRIMARY KEY AUTOINCREMENT,
  node INTEGER NOT NULL REFERENCES node, pipeline TEXT NOT NULL,
  ledger INTEGER REFERENCES ledger, priority INTEGER, sequence INTEGER,
  said_id TEXT, captured_at REAL NOT NULL, received_at REAL NOT NULL,
  content_type TEXT NOT NULL, properties TEXT, size INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE UNIQUE INDEX result_number ON result (ledger, priority, sequence) WHERE ledger IS NOT NULL;
CREATE UNIQUE INDEX result_said_id ON result (node, pipeline, said_id) WHERE ledger IS NULL AND said_id IS NOT NULL;
CREATE INDEX result_captured_at ON result (captured_at, ingest);

-- Numbers that an outbox will never send. `lost` of them are lost, by reason; the others were received before.
CREATE TABLE gap (
  ingest INTEGER PRIMARY KEY AUTOINCREMENT,
  ledger INTEGER NOT NULL REFERENCES ledger, priority INTEGER NOT NULL,
  first INTEGER NOT NULL, last INTEGER NOT NULL, lost INTEGER NOT NULL, reasons TEXT NOT NULL, previous TEXT NOT NULL,
  received_at REAL NOT NULL,
  UNIQUE (ledger, priority, first, last));

CREATE TABLE event (
  ingest INTEGER PRIMARY KEY AUTOINCREMENT,
  node INTEGER NOT NULL REFERENCES node, kind TEXT NOT NULL, said_id TEXT,
  at REAL NOT NULL, received_at REAL NOT NULL, payload BLOB NOT NULL);
CREATE UNIQUE INDEX event_said_id ON event (node, said_id) WHERE said_id IS NOT NULL;

CREATE TABLE health (
  ingest INTEGER PRIMARY KEY AUTOINCREMENT,
  node INTEGER NOT NULL REFERENCES node, at REAL NOT NULL, received_at REAL NOT NULL, payload BLOB NOT NULL);
CREATE INDEX health_node ON health (node, ingest);

-- The newest rejected messages, and the number of rejections by reason.
CREATE TABLE rejected (
  ingest INTEGER PRIMARY KEY AUTOINCREMENT,
  received_at REAL NOT NULL, topic TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL, number TEXT,
  size INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE rejections (reason TEXT PRIMARY KEY, count INTEGER NOT NULL);

-- The collector, and the total size of results.
CREATE TABLE collector (
  one INTEGER PRIMARY KEY CHECK (one = 1), region TEXT NOT NULL,
  started_at REAL NOT NULL, beat_at REAL NOT NULL, connected INTEGER NOT NULL, version TEXT NOT NULL,
  silent_after_s REAL NOT NULL, canary_every_s REAL,
  stored_bytes INTEGER NOT NULL);

-- For humans: results with names and readable times.
CREATE VIEW results AS
SELECT r.ingest, n.region, n.site, n.name AS node, r.pipeline, l.epoch, r.priority, r.sequence, r.said_id AS id,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.captured_at, 'unixepoch') AS captured_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.received_at, 'unixepoch') AS received_at,
       r.content_type, r.payload
FROM result r JOIN node n ON n.id = r.node LEFT JOIN ledger l ON l.id = r.ledger;
