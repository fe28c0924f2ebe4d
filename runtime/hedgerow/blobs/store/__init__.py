"""Where a node keeps the models it has fetched."""
