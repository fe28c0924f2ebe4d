"""Identity: who is who on the brokers, by X.509 certificates.

An offline root signs one authority for each site and one for the region; an authority signs short-lived certificates for
its broker, nodes, sensors, services and people. A certificate's common name is the user name on the broker.

- `names.py`: what an identity may be called, and which authority signs it.
- `certificates.py`: the certificates and revocation lists themselves. No files, no clock.
- `files.py`: writing so that a reader sees the old file or the new one, and reading with errors that help.
- `authority.py`: one authority's folder: its key, what it has issued, its revocation list.
- `entry.py`: a certificate as people see it.
- `folder.py`: all of them together: init, issue, renew, revoke, show.
- `provide.py`: what somebody has written down is there: issued, renewed, or left as it is.
- `inspect.py`: what may be wrong with the files that a node or a broker uses.

Keys are ECDSA on P-256: whatever speaks TLS takes them, down to microcontrollers, which is not so of Ed25519.
"""
