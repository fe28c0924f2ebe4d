"""Running a node: configuration, plugins."""
