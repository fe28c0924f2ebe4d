-- `who` is known: the operating system's user, for PostgreSQL the database's role. `claims` is what an operator says beside it.
ALTER TABLE intent ADD COLUMN claims TEXT NOT NULL DEFAULT '';
ALTER TABLE rollout ADD COLUMN claims TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN claims TEXT NOT NULL DEFAULT '';
-- Before this version, an operator could write any name there.
UPDATE intent SET claims = who, who = 'unverified' WHERE who <> 'service';
UPDATE rollout SET claims = who, who = 'unverified' WHERE who <> 'service';
UPDATE audit SET claims = who, who = 'unverified' WHERE who <> 'service';
