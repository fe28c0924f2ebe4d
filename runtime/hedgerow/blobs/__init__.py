"""Blobs: how models travel, and where a node keeps them.

Rules:
- Content is named by its digest and checked against it before anybody believes it, wherever it came from.
- What crosses the WAN goes to a topic of the site, so that a site pays for it once.
- Who asks whom for what, and when, is decided in `plan` and `offers`, which are pure; `fetch` and `serve` do the rest.
"""
