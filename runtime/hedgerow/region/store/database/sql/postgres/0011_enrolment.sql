-- What lets machines enrol. Only the public half of a claim's key is here: whoever reads this cannot use the claim.
CREATE TABLE claim (
  id TEXT PRIMARY KEY, site TEXT NOT NULL, place TEXT, public_key TEXT NOT NULL, uses INTEGER NOT NULL, used INTEGER NOT NULL,
  made_at DOUBLE PRECISION NOT NULL, expires_at DOUBLE PRECISION NOT NULL, labels TEXT NOT NULL, who TEXT NOT NULL, claims TEXT NOT NULL, why TEXT NOT NULL,
  revoked_at DOUBLE PRECISION);
-- Machines that asked, by SHA-256 of their key. `node` is its place once it is approved; `answer` what it then gets.
CREATE TABLE enrolment (
  fingerprint TEXT PRIMARY KEY, site TEXT NOT NULL, claim TEXT NOT NULL, csr TEXT NOT NULL, machine TEXT NOT NULL,
  state TEXT NOT NULL, asked_at DOUBLE PRECISION NOT NULL, seen_at DOUBLE PRECISION NOT NULL, decided_at DOUBLE PRECISION, node TEXT, who TEXT NOT NULL,
  reason TEXT NOT NULL, rule TEXT NOT NULL, grant_text TEXT NOT NULL, signature TEXT NOT NULL);
CREATE UNIQUE INDEX enrolment_node ON enrolment (site, node) WHERE state = 'approved';
CREATE INDEX enrolment_state ON enrolment (state, site);
