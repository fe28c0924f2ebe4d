"""Queues the requests of one site, and takes them in turn by node. Pure.

A node that requests everything cannot use up the places of the others: when all are taken, the node that has most gives one up.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from hedgerow.blobs.announcements import DocumentRequest


class SiteRequest(NamedTuple):
    """A request for a chunk of a group, or for a part of a document."""

    group: str
    digest: str
    document: DocumentRequest | None = None


class SiteQueue:
    """Requests that wait for a reply, each once, whichever node made it first.

    Args:
        places: most requests.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._nodes: OrderedDict[str, OrderedDict[SiteRequest, None]] = OrderedDict()
        self._waiting: set[SiteRequest] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: SiteRequest) -> bool:
        return request in self._waiting

    def add(self, node: str, request: SiteRequest) -> bool:
        """Add a node's request. Returns: whether none was dropped for it, itself included."""
        own = self._nodes.get(node, OrderedDict())
        full = len(self._waiting) >= self._places
        if full:
            greediest = max(self._nodes, key=lambda name: len(self._nodes[name]))
            if len(self._nodes[greediest]) <= len(own) + 1:
                return False
            dropped, _ = self._nodes[greediest].popitem()
            self._waiting.discard(dropped)
        own[request] = None
        self._nodes.setdefault(node, own)
        self._waiting.add(request)
        return not full

    def take(self) -> SiteRequest:
        """Remove and return the next request, in turn by node. Raises: KeyError: there is none."""
        node, requests = self._nodes.popitem(last=False)
        request, _ = requests.popitem(last=False)
        self._waiting.discard(request)
        if requests:
            self._nodes[node] = requests
        return request
