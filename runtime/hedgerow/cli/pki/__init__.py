"""`hedgerow pki`: certificates."""
