-- What the outbox calls the check of a result: it tells a repeat from another result of the same number. NULL in older rows.
ALTER TABLE result ADD COLUMN check_value BIGINT;

-- Each run of an outbox has an epoch of its own. `ended`: "" until another one has begun, then the last numbers that are known of
-- it, as in state: PRIORITY to LAST. It is closed once it has ended and nothing of it is missing. A ledger with `clash_of` has
-- further results of the numbers of another one: those of a second outbox that used them too.
ALTER TABLE ledger ADD COLUMN ended TEXT NOT NULL DEFAULT '';
ALTER TABLE ledger ADD COLUMN closed_at DOUBLE PRECISION;
ALTER TABLE ledger ADD COLUMN clash_of BIGINT REFERENCES ledger;
CREATE INDEX ledger_clash ON ledger (clash_of) WHERE clash_of IS NOT NULL;
CREATE INDEX ledger_closed ON ledger (closed_at) WHERE closed_at IS NOT NULL;
