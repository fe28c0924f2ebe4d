-- What each node has used of its site's quotas on its last day, counted in days since 1970 (UTC).
CREATE TABLE usage (
  node BIGINT PRIMARY KEY REFERENCES node, day BIGINT NOT NULL, stored_rows BIGINT NOT NULL, stored_bytes BIGINT NOT NULL, events BIGINT NOT NULL);

-- Refused messages by site ('' if their topic names none) and reason, with the newest detail.
CREATE TABLE refusal (
  site TEXT NOT NULL, reason TEXT NOT NULL, count BIGINT NOT NULL, first_at DOUBLE PRECISION NOT NULL, last_at DOUBLE PRECISION NOT NULL, detail TEXT NOT NULL,
  PRIMARY KEY (site, reason));

ALTER TABLE rejected ADD COLUMN site TEXT NOT NULL DEFAULT '';
CREATE INDEX rejected_site ON rejected (site, ingest);
