"""HTTPS client for model origins, which it trusts with nothing: neither its time, nor its memory, credentials or network.

Rules:
- HTTPS only, after redirects too. Certificates are verified against the system's CAs, SSL_CERT_FILE, or a configured
  file.
- A request has one deadline and one limit on bytes, whatever it is made of: name resolution, TLS, redirects, tokens,
  retries. It can be cancelled at any point.
- Credentials are read again for each request, so they can be changed at any time. They are sent only to the scheme, host
  and port they are configured for, and to the token services of that host or of `token_hosts`.
- A redirect leads to public addresses, to the address it came from, or to `redirect_hosts`; never elsewhere.
- HTTPS_PROXY and NO_PROXY are respected.
"""

from hedgerow.web.client import Response, WebClient
from hedgerow.web.errors import NotFound, OriginUnavailable

__all__ = ["NotFound", "OriginUnavailable", "Response", "WebClient"]
