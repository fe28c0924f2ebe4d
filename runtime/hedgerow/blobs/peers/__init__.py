"""Model chunks from node to node within a site."""
