"""Where model files come from besides the region: web servers and OCI registries."""
