-- `who` is known: the operating system's user, for PostgreSQL the database's role. `claims` is what an operator says beside it.
ALTER TABLE intent ADD COLUMN claims TEXT NOT NULL DEFAULT '';
ALTER TABLE rollout ADD COLUMN claims TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN claims TEXT NOT NULL DEFAULT '';
-- Before this version, an operator could write any name there.
UPDATE intent SET claims = who, who = 'unverified' WHERE who <> 'service';
UPDATE rollout SET claims = who, who = 'unverified' WHERE who <> 'service';
UPDATE audit SET claims = who, who = 'unverified' WHERE who <> 'service';

CREATE FUNCTION hedgerow_intent_who() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    NEW.claims := CASE WHEN NEW.claims = '' THEN NEW.who ELSE NEW.who || ' as ' || NEW.claims END;
    NEW.who := session_user;
  ELSE
    NEW.who := OLD.who;
    NEW.claims := OLD.claims;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER intent_who BEFORE INSERT OR UPDATE ON intent FOR EACH ROW EXECUTE FUNCTION hedgerow_intent_who();
