"""From a message to its place in the queue: stream, rate, what has to make room."""
