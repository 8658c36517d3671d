"""The one kind of error a user sees: a sentence about what they typed."""


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message is one line that names the field, what was given, why it cannot be and what can.
    The command line prints it and leaves with status 2; from Python it is an ordinary exception.
    """


class NoRoom(Exception):
    """A disk is full. The message is one line; what was written before stays, and nothing is left half-written.

    The command line prints it and leaves with status 1: nothing the user typed was wrong.
    """
