"""The node in a fleet: its agent applies desired documents, and reports."""
