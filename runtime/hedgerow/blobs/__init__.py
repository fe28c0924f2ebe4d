"""Distribution and storage of model files.

Rules:
- Content is named by its digest and verified against it before use, whatever its source.
- Chunks from the region go to a topic of the whole site, so a site pays the WAN traffic once.
- `fetch.scheduler` and `peers.peer_offers` decide and are pure; the other modules do the I/O.
"""
