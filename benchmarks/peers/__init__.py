"""The peers: hand-written loops, a framework and two servers. Each runs in its own process.

Some need packages that this project does not depend on. These are installed in a separate environment
(`environment.py`) without `hedgerow`, so modules that such peers import must not import it.
"""
