"""Errors that a user can mend: shown as one message, without a traceback."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it, says what was expected, and how to mend it."""


class CellConflict(UserError):
    """A cell's folder holds results of other settings."""
