"""Errors that a user can mend: shown as one message, without a traceback."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it, what was expected, and the fix."""


class CellConflict(UserError):
    """A cell's folder holds results of other settings."""
