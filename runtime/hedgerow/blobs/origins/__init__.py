"""Model origins other than the region: web servers and OCI registries."""
