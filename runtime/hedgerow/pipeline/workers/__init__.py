"""Stages in processes of their own: the node's end, the process, and what crosses the pipe."""
