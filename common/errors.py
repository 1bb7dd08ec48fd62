"""The one kind of error that is meant for the user's eyes."""


class UserError(Exception):
    """Bad input: the message names the file, line or key and the fix. Scripts print it as it is and exit with 2."""

    def __str__(self) -> str:
        """Return the message with what a terminal would obey, or not every stream could print, written as escapes.

        (Half a surrogate pair, of a file name that is not UTF-8, is such a character.)
        """
        text = super().__str__()
        return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
