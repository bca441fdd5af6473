"""Ids that name nobody: salted hashes of what DICOM files call patients, studies and series."""

import hashlib
import hmac
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from prevox.console import warn
from prevox.errors import RunError

_WAIT = 5.0  # seconds that another task, which has just made the file, has to write its salt
_DIGITS = 16  # 64 bits: a million images share no id by chance


def read_salt(path: Path) -> bytes:
    """The salt in a file; a new one is drawn and written, readable by its owner only, where there is none.

    Of tasks that draw one at the same time, one makes the file and the others take what it writes.

    Raises:
        RunError: If the file cannot be read or written, or is empty.
    """
    try:
        if not path.exists():
            with suppress(FileExistsError), open(path, "x", opener=_private) as file:
                file.write(secrets.token_hex(32) + "\n")
        elif others := path.stat().st_mode & 0o077:
            with suppress(OSError):  # the salt of somebody else: it is read, and the warning stands
                keep_private(path, 0o600)
            warn(f"{path}: others could use this salt (mode {others:03o}): from now on only you can, if it is yours")
        content, began = path.read_bytes(), time.monotonic()
        while not content and time.monotonic() - began < _WAIT:
            time.sleep(0.05)
            content = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path}: the salt cannot be read or written ({error.strerror}). Give another --dicom.salt."
        ) from None
    if not content.strip():
        raise RunError(f"{path}: the salt is empty. Restore it, or remove the file to draw a new one: ids then change.")
    return content.strip()


def keep_private(path: Path, mode: int) -> bool:
    """Take from others what they may do with a file or folder; whether there was anything to take.

    Raises:
        OSError: If it belongs to somebody else.
    """
    if not path.stat().st_mode & 0o077:
        return False
    path.chmod(mode)
    return True


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def pseudonym(salt: bytes, kind: str, value: str) -> str:
    """Hash of an identifier, by HMAC-SHA256: without the salt it cannot be found by trying all identifiers.

    Args:
        salt: The secret.
        kind: What is hashed ("patient"): equal values of two kinds have different hashes.
        value: The identifier.
    """
    return hmac.new(salt, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_DIGITS]


def content_key(salt: bytes) -> str:
    """Key of the hashes over the bytes of files, in hexadecimal.

    Without it, who has the same scan without its names could try names until the bytes have the hash in a catalogue.
    """
    return hmac.new(salt, b"contents", hashlib.sha256).hexdigest()


def plain_id(value: str) -> str:
    """An identifier as it is, but fit for a file name."""
    return re.sub(r"[^\w.-]+", "-", value).strip(".-") or "none"
