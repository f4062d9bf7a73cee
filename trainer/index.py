"""Which block each category of a field is in, where blocks are no ranges of ids: short text for a description.

One byte per category, the number of its block, deflated and in base64. Light: the standard library alone.
"""

import base64
import binascii
import zlib

LEVEL = 9


def packed(number_R: bytes) -> str:
    """The text for the block numbers of R categories."""
    return base64.b64encode(zlib.compress(number_R, LEVEL)).decode()


def unpacked(text: str) -> bytes:
    """The opposite of `packed`. Raises ValueError for a text that it has not made."""
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except (binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from None
