"""What a description says of every category of a field: a few bytes for each, as short text.

The number of its block, where blocks are no ranges of ids, the codes of its centroids, or its votes in a router
(signed), deflated and in base64. `trainer.shapes` counts these numbers in the bits that they need.
Light: the standard library alone.
"""

import base64
import binascii
import zlib

LEVEL = 9


def packed(numbers: bytes) -> str:
    """The text for the bytes of all categories, those of a category side by side."""
    return base64.b64encode(zlib.compress(numbers, LEVEL)).decode()


def unpacked(text: str) -> bytes:
    """The opposite of `packed`. Raises ValueError for a text that it has not made."""
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except (binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from None
