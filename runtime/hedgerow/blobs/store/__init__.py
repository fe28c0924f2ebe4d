"""Store of fetched models on a node's disk."""
