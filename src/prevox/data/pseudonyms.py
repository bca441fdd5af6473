"""Ids that name nobody: salted hashes of what DICOM files call patients, studies and series."""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from prevox.errors import RunError

_DIGITS = 16  # 64 bits: a million images share no id by chance


def read_salt(path: Path) -> bytes:
    """The salt in a file; a new one is drawn and written, readable by its owner only, where there is none.

    Raises:
        RunError: If the file cannot be read or written, or is empty.
    """
    try:
        if not path.exists():
            path.touch(0o600)
            path.write_text(secrets.token_hex(32) + "\n")
        salt = path.read_bytes().strip()
    except OSError as error:
        raise RunError(
            f"{path}: the salt cannot be read or written ({error.strerror}). Give another --dicom.salt."
        ) from None
    if not salt:
        raise RunError(f"{path}: the salt is empty. Restore it, or remove the file to draw a new one: ids then change.")
    return salt


def pseudonym(salt: bytes, kind: str, value: str) -> str:
    """Hash of an identifier, by HMAC-SHA256: without the salt it cannot be found by trying all identifiers.

    Args:
        salt: The secret.
        kind: What is hashed ("patient"): equal values of two kinds have different hashes.
        value: The identifier.
    """
    return hmac.new(salt, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_DIGITS]


def plain_id(value: str) -> str:
    """An identifier as it is, but fit for a file name."""
    return re.sub(r"[^\w.-]+", "-", value).strip(".-") or "none"
