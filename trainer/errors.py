"""The one error style: one line that says what is wrong, where, and what to write instead."""


class UserError(Exception):
    """A mistake that only the user can mend. Commands print its one line and exit with code 2.

    `str(error)` is the whole message; it names the file, row or key and what to write instead.
    """


class NoSpaceError(UserError):
    """The output folder is full or cannot be written. Nothing half-written is left that a later run would trust."""
