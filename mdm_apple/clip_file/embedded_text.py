"""The text that a picture or clip carries, where each kind of file has a place for one.

PNG: iTXt of the key `mdm`. WebP: XMP. GIF: the comment. MP4 and MOV: the metadata `comment`.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from xml.sax.saxutils import escape, unescape

from PIL import Image, PngImagePlugin

from mdm_apple.clip_file.movie import is_movie, movie_comment
from mdm_apple.errors import MdmError

KEY = "mdm"
FORMATS = ("PNG", "WEBP", "GIF")  # no other decoder runs, whatever the file name says
MAX_TEXT = 1 << 16

_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:mdm="urn:mdm-apple:recipe">
<mdm:recipe>{}</mdm:recipe>
</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
# searched for, not parsed: nothing in a file from outside is expanded
_IN_XMP = re.compile(r"<mdm:recipe>([^<]*)</mdm:recipe>")


def png_text(text: str | None) -> PngImagePlugin.PngInfo:
    """The text as Pillow writes it into a PNG."""
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_itxt(KEY, text)
    return info


def xmp(text: str | None) -> bytes:
    """The text as an XMP packet."""
    return b"" if text is None else _XMP.format(escape(text)).encode()


def embedded_text(path: Path) -> str | None:
    """The text in a file from outside; None where it carries none, or more than MAX_TEXT.

    Raises MdmError for what is no PNG, WebP, GIF, MP4 or MOV file.
    """
    unreadable = MdmError(
        f"{path}: expected a picture or clip made by mdm sample, but cannot read it."
    )
    if not path.is_file():
        raise MdmError(f"{path}: no such file.")
    try:
        text = movie_comment(path) if is_movie(path) else _text_of_picture(path)
    except (MdmError, MemoryError):
        raise
    except Exception:  # decoders fail on hostile files in every possible way
        raise unreadable from None
    return None if text is None or len(text) > MAX_TEXT else text


def _text_of_picture(path: Path) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as picture:
            kind, found = picture.format, picture.info
            if kind == "PNG":
                picture.load()  # the text may stand behind the pixels
                text = getattr(picture, "text", {}).get(KEY)
                return None if text is None else str(text)
    if kind == "GIF":
        comment = found.get("comment")
        return comment.decode() if isinstance(comment, bytes) else comment
    packet = found.get("xmp", b"")
    inside = _IN_XMP.search(packet.decode()) if len(packet) <= 8 * MAX_TEXT else None
    return None if inside is None else unescape(inside[1])
