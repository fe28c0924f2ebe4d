"""Errors of model origins, one class per reason, so that events and counters tell them apart."""

from __future__ import annotations

from hedgerow.errors import BusError


class OriginUnavailable(BusError):
    """A model origin is unreachable or does not deliver: wait, or check it.

    Attributes:
        received: bytes received from it by the request, headers included.
        seconds: time the request took.
    """

    code = "source-away"
    received = 0
    seconds = 0.0


class OriginSlow(OriginUnavailable):
    """It sends too slowly, or not at all: check it, or the link to it."""

    code = "source-slow"


class OriginEndless(OriginUnavailable):
    """It sends more than was requested: it is broken or hostile."""

    code = "source-endless"


class RedirectRefused(OriginUnavailable):
    """It redirects to where this node does not go."""

    code = "redirect-refused"


class CredentialsWithheld(OriginUnavailable):
    """It wants the credentials sent to another host."""

    code = "credentials-withheld"


class NotFound(Exception):
    """The server does not have the requested file."""
