"""A model as a bundle on the disk: manifest, files, golden cases, what it was measured at."""
