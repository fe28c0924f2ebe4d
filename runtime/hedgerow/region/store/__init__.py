"""The region's store: records in, queries out, on SQLite or PostgreSQL."""
