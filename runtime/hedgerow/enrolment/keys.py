"""The key of a machine that enrols: in a file, or on a PKCS#11 token."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from hedgerow.enrolment.folder import EnrolmentFolder
from hedgerow.enrolment.token_keys import KeyOnToken, open_key, reference, why_not_in_tls
from hedgerow.errors import ConfigError
from hedgerow.pki import certificates, files


def node_key(folder: EnrolmentFolder, uri: str | None, *, unusable: bool = False) -> ec.EllipticCurvePrivateKey:
    """Open the machine's key; make it at first use.

    Args:
        folder: it must exist.
        uri: a key on a token, `pkcs11:…`; None: a file in the folder.
        unusable: take a key on a token although TLS cannot use it here.
    Raises:
        ConfigError: TLS cannot use the key, or the URI is invalid.
        TokenUnusable: the token refuses.
        PkiError: the file cannot be read or written.
    """
    if uri is None:
        with folder.locked():
            if not folder.key_file.exists():
                files.write_key(folder.key_file, certificates.new_key())
        return files.read_key(folder.key_file)
    key: KeyOnToken = open_key(uri)
    if not unusable and (why := why_not_in_tls(uri, key)) is not None:
        raise ConfigError(
            f"The node could not connect with this key: {why}",
            remedy="Install OpenSSL's pkcs11-provider (Debian 12 has it in bookworm-backports), activate it in the file that OPENSSL_CONF "
            "names, and try again; or use a key in a file, on an encrypted disk. To get a certificate for the key all the same: "
            "--accept-unusable-key.",
        )
    with folder.locked():
        files.write(folder.key_file, reference(uri), private=True)
    return key
