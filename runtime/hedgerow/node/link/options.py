"""Connection options of the node's links."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.packets import Publication
from hedgerow.config import BrokerSection


def link_options(
    broker: BrokerSection,
    client_id: str,
    *,
    receive_maximum: int = 64,
    max_payload_bytes: int = 1 << 20,
    keep_session: bool = True,
    will: Publication | None = None,
    session_file: Path | None = None,
    set_aside_folder: Path | None = None,
    refuse_lower_qos: bool = False,
) -> ClientOptions:
    """Return the options of a link to the site's broker.

    Args:
        keep_session: whether the broker queues messages while the link is down.
        session_file, set_aside_folder, refuse_lower_qos: see `ClientOptions`.
    Raises: ConfigError: the password file cannot be read.
    """
    options = ClientOptions(
        url=broker.url,
        client_id=client_id,
        username=broker.username,
        password=None if broker.password is None else broker.password.get_secret_value(),
        password_file=broker.password_file,
        ca_file=broker.tls.ca_file,
        cert_file=broker.tls.cert_file,
        key_file=broker.tls.key_file,
        crl_file=broker.tls.crl_file,
        min_tls=broker.tls.min_version,
        keepalive_s=broker.keepalive_s,
        session_expiry_s=broker.session_expiry_s if keep_session else 0,
        clean_start=not keep_session,
        receive_maximum=receive_maximum,
        max_payload_bytes=max_payload_bytes,
        will=will,
        session_file=session_file,
        set_aside_folder=set_aside_folder,
        refuse_lower_qos=refuse_lower_qos,
    )
    options.read_password()  # better an error at the start than at each attempt
    return options


def on_loopback(url: str) -> bool:
    """Return whether a broker's URL points to this machine."""
    host = urlsplit(url).hostname or ""
    return url.startswith("unix:") or host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None


def is_plain_text_on_network(url: str) -> bool:
    """Return whether a broker's URL leaves this machine without TLS, so that others can read the frames."""
    return url.startswith(("mqtt:", "ws:")) and not on_loopback(url)
