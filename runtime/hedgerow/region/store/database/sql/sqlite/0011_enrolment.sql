-- What lets machines enrol. Only the public half of a claim's key is here: whoever reads this cannot use the claim.
CREATE TABLE claim (
  id TEXT PRIMARY KEY, site TEXT NOT NULL, place TEXT, public_key TEXT NOT NULL, uses INTEGER NOT NULL, used INTEGER NOT NULL,
  made_at REAL NOT NULL, expires_at REAL NOT NULL, labels TEXT NOT NULL, who TEXT NOT NULL, claims TEXT NOT NULL, why TEXT NOT NULL,
  revoked_at REAL);
-- Machines that asked, by SHA-256 of their key. `node` is its place once it is approved; `answer` what it then gets.
CREATE TABLE enrolment (
  fingerprint TEXT PRIMARY KEY, site TEXT NOT NULL, claim TEXT NOT NULL, csr TEXT NOT NULL, machine TEXT NOT NULL,
  state TEXT NOT NULL, asked_at REAL NOT NULL, seen_at REAL NOT NULL, decided_at REAL, node TEXT, who TEXT NOT NULL,
  reason TEXT NOT NULL, rule TEXT NOT NULL, grant_text TEXT NOT NULL, signature TEXT NOT NULL);
CREATE UNIQUE INDEX enrolment_node ON enrolment (site, node) WHERE state = 'approved';
CREATE INDEX enrolment_state ON enrolment (state, site);
