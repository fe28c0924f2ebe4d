"""Worker processes that run stages: the node's end, the process, and the pipe between them."""
