"""The errors that users are meant to read; the command line turns each into one line and exit code 2."""


class UsageError(Exception):
    """Bad input. The message names what is wrong, what was expected, and what to type instead."""


class Unreachable(UsageError):
    """A step count or NFE that a solver or student cannot have. A sweep skips such cells; a single request is refused."""


class Unavailable(Exception):
    """Something optional (metric weights, a data set) is not on this machine. The message says what and how to get it."""


def near_misses(word: str, known: "list[str] | tuple[str, ...]", limit: int = 3) -> str:
    """`; did you mean a, b?` for the known names closest to `word`, or the whole list when none is close."""
    import difflib

    close = difflib.get_close_matches(word, known, n=limit, cutoff=0.5)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
