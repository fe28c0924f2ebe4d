-- What each node has used of its site's quotas on its last day, counted in days since 1970 (UTC).
CREATE TABLE usage (
  node INTEGER PRIMARY KEY REFERENCES node, day INTEGER NOT NULL, stored_rows INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, events INTEGER NOT NULL);

-- Refused messages by site ('' if their topic names none) and reason, with the newest detail.
CREATE TABLE refusal (
  site TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, first_at REAL NOT NULL, last_at REAL NOT NULL, detail TEXT NOT NULL,
  PRIMARY KEY (site, reason));

ALTER TABLE rejected ADD COLUMN site TEXT NOT NULL DEFAULT '';
CREATE INDEX rejected_site ON rejected (site, ingest);
