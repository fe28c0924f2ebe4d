"""State of streams as rows of arrays, for stages that process batches."""
