"""A model's bundle on disk: manifest, files, golden cases, benchmark results."""
