"""Models: building bundles, loading and serving them, and monitoring the versions that serve."""
