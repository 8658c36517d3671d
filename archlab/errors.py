"""The one kind of error a user sees: a sentence about what they typed, which is cut where nobody would read it."""


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message is one line that names the field, what was given, why it cannot be and what can.
    The command line prints it and leaves with status 2; from Python it is an ordinary exception.
    """


def shortened(text: str, most: int = 80) -> str:
    """Its beginning, and how long it is, where nobody would read it to its end."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
