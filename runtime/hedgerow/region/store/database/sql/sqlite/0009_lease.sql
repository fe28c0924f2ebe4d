-- The term of the service that leads. `fence` is the term's number, which each of its transactions checks; `renewals` changes
-- while it lives; `locked` says whether it holds the store's lock, which the system frees when it ends. `instance` is '' once it
-- has left in order. Services of one store use one MQTT session after each other, so its secret is here.
CREATE TABLE lease (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  fence INTEGER NOT NULL UNIQUE, renewals INTEGER NOT NULL, locked INTEGER NOT NULL,
  instance TEXT NOT NULL, host TEXT NOT NULL, since REAL NOT NULL, renewed_at REAL NOT NULL, client_token TEXT NOT NULL);
INSERT INTO lease VALUES (1, 0, 0, 0, '', '', 0, 0, '');

-- The newest terms: who took the lease when, for which reason, and when the term before was last renewed.
CREATE TABLE lease_term (
  fence INTEGER PRIMARY KEY, instance TEXT NOT NULL, host TEXT NOT NULL, since REAL NOT NULL,
  because TEXT NOT NULL, last_renewed_at REAL NOT NULL);

-- Services that wait for the lease.
CREATE TABLE standby (instance TEXT PRIMARY KEY, host TEXT NOT NULL, seen_at REAL NOT NULL);
