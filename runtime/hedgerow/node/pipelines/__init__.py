"""A node's pipelines, and the configuration that they run by."""
