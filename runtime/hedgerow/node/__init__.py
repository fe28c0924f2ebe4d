"""The node: pipelines, commands and health put together."""
