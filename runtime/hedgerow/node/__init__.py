"""The node: one process that runs pipelines, and swaps their models as a region desires."""
