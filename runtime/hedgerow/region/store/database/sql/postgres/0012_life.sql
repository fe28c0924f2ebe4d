-- `changes` counts operations that change who a node is; the collector then reads its nodes again.
ALTER TABLE collector ADD COLUMN changes BIGINT NOT NULL DEFAULT 0;

-- A forgotten node: when, and by whom and why. What it has sent stays.
ALTER TABLE node ADD COLUMN forgotten_at DOUBLE PRECISION;
ALTER TABLE node ADD COLUMN forgotten_because TEXT;

-- Former addresses. Until `seen_at`, when the node first reported under its present one, it may still run under this one;
-- `session` is its last one here. From `ended_at` on, the address stands for it no more.
CREATE TABLE alias (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, node BIGINT NOT NULL REFERENCES node,
  region TEXT NOT NULL, site TEXT NOT NULL, name TEXT NOT NULL,
  since DOUBLE PRECISION NOT NULL, seen_at DOUBLE PRECISION, session TEXT, ended_at DOUBLE PRECISION);
CREATE UNIQUE INDEX alias_address ON alias (region, site, name) WHERE ended_at IS NULL;

-- Topics whose retained messages the region's broker is to drop.
CREATE TABLE clearing (topic TEXT PRIMARY KEY);
