"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend. Its text is one line: the key, the value, what is allowed, what to type.

    The command line prints it after `kdrun: ` and exits with code 2; anything else that is raised is a crash and keeps
    its traceback (exit code 1).
    """
