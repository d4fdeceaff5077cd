"""A certificate for 127.0.0.1, made for the run, and whom to trust for it."""

from __future__ import annotations

import atexit
import shutil
import ssl
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from loadtests.rig.processes import Unavailable


@dataclass(frozen=True)
class Certificate:
    """Files in PEM: the certificate, its key (PKCS #8, as Granian wants it), and its authority."""

    chain: Path
    key: Path
    authority: Path


@cache
def certificate() -> Certificate:
    """One for this process, gone with it. Raises Unavailable."""
    try:
        import trustme
        from cryptography.hazmat.primitives import serialization as pem
    except ImportError:
        raise Unavailable("no trustme: pip install trustme") from None
    folder = tempfile.mkdtemp(prefix="loadtests-tls-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    found = Certificate(*(Path(folder) / name for name in ("chain.pem", "key.pem", "authority.pem")))
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    found.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key = pem.load_pem_private_key(issued.private_key_pem.bytes(), None)
    found.key.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    authority.cert_pem.write_to_path(str(found.authority))
    return found


def trust(url: str) -> ssl.SSLContext | None:
    """For a server of this run its authority, for others whom this machine trusts; None for plain HTTP."""
    parts = urlsplit(url)
    if parts.scheme != "https":
        return None
    here = parts.hostname == "127.0.0.1"
    return ssl.create_default_context(cafile=str(certificate().authority) if here else None)
