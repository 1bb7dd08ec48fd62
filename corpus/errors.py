"""The one kind of error that is meant for the user's eyes."""


class UserError(Exception):
    """Bad input: the message names the file, line or key and the mend. Scripts print it as it is and exit with 2."""
