"""The one kind of error that is meant for the user's eyes."""


class UserError(Exception):
    """Bad input: the message names the file, line or key and the fix. Scripts print it as it is and exit with 2."""

    def __str__(self) -> str:
        """Nothing of a file reaches the terminal as a command, and half a surrogate pair (of a name that is not UTF-8)
        is spelled out: not every stream could print it.
        """
        text = super().__str__()
        return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
