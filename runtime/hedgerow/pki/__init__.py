"""Identities on the brokers, as X.509 certificates.

An offline root signs one authority per site and one for the region; an authority signs short-lived certificates for its
broker, nodes, sensors, services and people. A certificate's common name is the user name on the broker.

- `names.py`: valid names of identities, and which authority signs them.
- `certificates.py`: certificates and revocation lists. No files, no clock.
- `files.py`: atomic writes, and reads with helpful errors.
- `authority.py`: one authority's folder: its key, issued certificates and revocation list.
- `entry.py`: a certificate as `show` lists it.
- `folder.py`: all authorities together: init, issue, renew, revoke, show.
- `provide.py`: issues and renews certificates so that a list of requests is met.
- `inspect.py`: checks the files that a node or a broker uses.

Keys are ECDSA on P-256: unlike Ed25519, every TLS implementation supports them, down to microcontrollers.
"""
