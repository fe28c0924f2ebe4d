"""`hedgerow demo`: demos of a node, a region and a rollout."""
