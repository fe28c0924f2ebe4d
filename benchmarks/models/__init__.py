"""What models cost: batches, memory, swaps, reloads."""
