"""Databases for the region's store: SQLite or PostgreSQL, with their migrations."""
