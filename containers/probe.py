#!/usr/bin/env -S python3 -I -S
"""Health check of the images, which have no curl: `probe http://127.0.0.1:9464/healthz` exits with 0 on status 200."""

import http.client
import sys
from urllib.parse import urlsplit

url = urlsplit(sys.argv[1])
try:
    connection = http.client.HTTPConnection(url.netloc, timeout=4)
    connection.request("GET", url.path)
    response = connection.getresponse()
    print(response.status, response.read(4096).decode("utf-8", "replace"))
    sys.exit(response.status != 200)
except OSError as error:
    sys.exit(f"{sys.argv[1]} does not respond: {error}")
