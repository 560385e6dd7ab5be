"""The errors that users are meant to read; the command line turns each into one line and exit code 2."""

from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches


def one_line(text: str) -> str:
    """A text with what would leave its line, or cannot be printed, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


LONGEST = 2000  # characters of a message: what was given may be an array of any size


class UsageError(Exception):
    """Bad input. The message names what is wrong, what was expected, and what to type instead, in one line."""

    def __init__(self, message: str) -> None:
        line = one_line(str(message))
        half = LONGEST // 2
        super().__init__(line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}")


class Unreachable(UsageError):
    """A step count or NFE that a solver or student cannot have. A sweep skips such cells; a single request is refused."""


class Unavailable(Exception):
    """Something optional (metric weights, a data set) is not on this machine. The message says what and how to get it."""


def near_misses(word: object, known: Sequence[str]) -> str:
    """`; did you mean a, b?` for the known names about as close to `word` as the closest, or all names when none is close."""
    word = str(word)
    close = get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        likeness = {name: SequenceMatcher(None, name, word).ratio() for name in close}
        best = [name for name in close if likeness[name] > max(likeness.values()) - 0.1]
        return f"; did you mean {', '.join(best)}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where it is answered like Ctrl-C: finished work is kept, and the same command goes on."""
