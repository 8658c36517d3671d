"""The one kind of error a user sees: a sentence about what they typed, or about a file they named; cut where nobody would read it."""

import re

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it: control and escape codes, reversed writing; and halves of a character."""


def printable(text: str) -> str:
    """The text with what a terminal would obey written out, an escape code as its four letters."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message is one line that names the field, what was given, why it cannot be and what can.
    The command line prints it and leaves with status 2; from Python it is an ordinary exception.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class NoRoom(Exception):
    """A disk is full. The message is one line; what was written before stays, and nothing is left half-written.

    The command line prints it and leaves with status 1: nothing the user typed was wrong.
    """


def shortened(text: str, most: int = 80) -> str:
    """Its beginning, and how long it is, where nobody would read it to its end."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
