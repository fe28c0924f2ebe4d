"""The database behind the store: SQLite or PostgreSQL, and the tables as migrations."""
