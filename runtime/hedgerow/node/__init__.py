"""The node: one process that runs pipelines and swaps their models to the versions the region desires."""
