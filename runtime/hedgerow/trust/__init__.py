"""Which model may serve where: signatures by The Update Framework, checked on the node, made at the region and by owners."""
