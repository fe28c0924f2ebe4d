"""The peers: loops written by hand, a framework and two servers. Each runs in a process of its own.

Some need packages that are no part of this project: those are in an environment of their own (`environment.py`), where
`hedgerow` is not installed. So what they import of ours must do without it.
"""
