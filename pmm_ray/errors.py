"""The one error a user is meant to read."""


class UserError(Exception):
    """What went wrong in one line: the file or key, and the mend. The command line prints it without a traceback."""
