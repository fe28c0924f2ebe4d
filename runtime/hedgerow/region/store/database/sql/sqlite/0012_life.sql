-- `changes` counts operations that change who a node is; the collector then reads its nodes again.
ALTER TABLE collector ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;

-- A forgotten node: when, and by whom and why. What it has sent stays.
ALTER TABLE node ADD COLUMN forgotten_at REAL;
ALTER TABLE node ADD COLUMN forgotten_because TEXT;

-- Former addresses. Until `seen_at`, when the node first reported under its present one, it may still run under this one;
-- `session` is its last one here. From `ended_at` on, the address stands for it no more.
CREATE TABLE alias (
  id INTEGER PRIMARY KEY AUTOINCREMENT, node INTEGER NOT NULL REFERENCES node,
  region TEXT NOT NULL, site TEXT NOT NULL, name TEXT NOT NULL,
  since REAL NOT NULL, seen_at REAL, session TEXT, ended_at REAL);
CREATE UNIQUE INDEX alias_address ON alias (region, site, name) WHERE ended_at IS NULL;

-- Topics whose retained messages the region's broker is to drop.
CREATE TABLE clearing (topic TEXT PRIMARY KEY);
