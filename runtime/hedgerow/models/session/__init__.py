"""A loaded model: its signature, its memory, and the batches it runs."""
