"""Errors that a user can cause. Each is one line: the value, where it stands, what to do about it."""


class UserError(Exception):
    """Something the user can put right; the command ends with `exit_code` and this one line."""

    exit_code = 1


class UsageError(UserError):
    """Wrong command line or configuration."""

    exit_code = 2


class DataError(UserError):
    """The data did not pass a gate; the tables that stood before still stand."""

    exit_code = 3


class Refusal(DataError):
    """The stage did all it could, and something of what it judged did not pass: a model at the gate, a file that cannot be read."""
