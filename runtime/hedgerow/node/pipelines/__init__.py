"""The node's pipelines and their configuration."""
