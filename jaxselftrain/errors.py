"""The errors that end a command with one sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can change: the message names the field, file or line and what to do. Exit code 2."""


class Resumable(Exception):
    """The run stopped on request with everything saved; the message is the command that resumes it. Exit code 75."""

    code = 75
