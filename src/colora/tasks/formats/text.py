"""The bytes of a task file, unpacked, and its text."""

import gzip
import zlib
from pathlib import Path

from colora.tasks.faults import Faults

__all__ = ["decode_text", "read_bytes"]

_OTHERS = {
    b"\x1f\x8b": "gzip data; name the file with .gz at its end",
    b"PAR1": "parquet data; name the file .parquet",
    b"PK\x03\x04": "a zip archive, as spreadsheets are; save it as CSV",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}


def read_bytes(path: Path, faults: Faults) -> bytes | None:
    """What is in a file; of a name that ends in .gz, what was packed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        faults.add(str(path), f"expected a readable file, found {error.strerror or error}")
        return None
    if path.suffix.lower() != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        faults.add(str(path), f"expected gzip data, found {error}")
    return None


def decode_text(file: str, content: bytes, faults: Faults) -> str | None:
    """UTF-8 bytes as text, without a byte-order mark."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `error.object` lacks a byte-order mark that the codec has taken off: count it in again.
        offset = error.start + len(content) - len(error.object)
        line = error.object[: error.start].count(b"\n") + 1
        bad = error.object[error.start]
        found = f"the byte 0x{bad:02x} at byte offset {offset}"
        found += "".join(f": {other}" for start, other in _OTHERS.items() if content.startswith(start))
        faults.add(file, f"expected UTF-8 text, found {found}", line)
        return None
    if "\0" in text and text.count("\0") > len(text) // 4:  # every second character of ASCII in UTF-16
        faults.add(file, "expected UTF-8 text, found NUL characters, as UTF-16 text has; save it as UTF-8", 1)
        return None
    return text
