"""A node's part in a fleet: its agent carries out what the region desires, and reports."""
