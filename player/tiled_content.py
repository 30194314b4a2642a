"""What a tile is made of on the network: a segment of the right length, with no picture in it.

Nothing here decodes tiles: what counts is how long they take and where they lie. A body is a
``styp`` box (ISO/IEC 14496-12, section 8.16.2) of the brand ``msdh``, a media segment of DASH, and
a ``free`` box (8.1.2) of zeros, so that any reader of boxes gets through it. A size too small for
both is a ``free`` box alone; one too small even for that is zeros.
"""

from __future__ import annotations

from player import fmp4
from player.content import Segment

_BRAND_AND_VERSION = b"msdh\0\0\0\0"
STYP = fmp4.BOX_HEADER.pack(fmp4.BOX_HEADER.size + len(_BRAND_AND_VERSION), b"styp") + (
    _BRAND_AND_VERSION
)


def tile_segment(size_bytes: int) -> Segment:
    """A tile of exactly ``size_bytes``.

    Raises:
        ContentError: no bytes, or more than one box can hold.
    """
    if not 1 <= size_bytes <= fmp4.MAX_BOX_BYTES:
        raise fmp4.ContentError(f"a tile has 1 to {fmp4.MAX_BOX_BYTES} bytes, not {size_bytes}")
    head = STYP if size_bytes >= len(STYP) + fmp4.BOX_HEADER.size else b""
    padding = size_bytes - len(head)
    if padding >= fmp4.BOX_HEADER.size:
        head += fmp4.BOX_HEADER.pack(padding, b"free")
    return Segment(head, size_bytes)
