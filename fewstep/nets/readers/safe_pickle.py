"""Pickles as inert data: a machine of our own for their opcodes, which imports nothing and calls nothing but what its caller lists.

    loads(data, ALLOWED.get, "file x.pkl")     ALLOWED: {"numpy.dtype": inert("numpy.dtype"), ...}

Python's own unpickler imports what a file names (GLOBAL, STACK_GLOBAL, INST), calls it (REDUCE, OBJ, NEWOBJ, NEWOBJ_EX), writes into what
that gave (BUILD, APPENDS, SETITEMS), takes objects from a table of the process (EXT) and asks its caller for others (PERSID, buffers).
Here a name becomes a `Global`, which is a string; a call becomes what the caller's function for that very name makes of the arguments, most
often a `Record` that keeps them; and nothing is ever written into but what this machine itself made.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import UsageError

Make = Callable[..., Any]  # the arguments that a file has for a name in, data out; it has to be cheap, and must not run or copy them
Find = Callable[[str], Make | None]  # what to make of "module.name"; None for a name that is refused
Persistent = Callable[[Any], Any]  # what stands for an object that the file keeps elsewhere, by its id
DEEPEST = 32  # modules in modules
SPARE = 1_000_000  # arguments of calls, beyond a few for each byte of the file: a file whose calls have more of them is a bomb
NEWEST = 5  # protocol
SIZED = (list, tuple, dict, set, str, bytes, bytearray)
KEYS = (str, bytes, int, float, bool, type(None))


class Refused(Exception):
    """Why a pickle is not read."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of something that a file would have imported."""

    name: str


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """What a file would have made an object of: the class, the arguments, and what was then put into it.

    A file may put a record into itself, and into others any number of times: `walk` bounds both.
    """

    name: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)


def inert(name: str) -> Make:
    """Objects of this class as records of their arguments."""
    return lambda *args, **options: Record(name, args, options)


def token(*args: Any) -> Any:
    """For a name that a file may mention, but not call. **Raises**: always."""
    raise Refused("it calls something that is only a name")


def as_dict(*args: Any) -> dict[Any, Any]:
    """A mapping class of any kind as a plain dictionary of its pairs."""
    return {_key(key): value for key, value in (args[0] if args else ())}


def as_set(*args: Any) -> set[Any]:
    """A set of plain values."""
    return {_key(value) for value in (args[0] if args else ())}


PLAIN: dict[str, Make] = {  # containers that pickles of every protocol make by a call
    "collections.OrderedDict": as_dict,
    "builtins.dict": as_dict,
    "builtins.set": as_set,
    "__builtin__.set": as_set,
    "builtins.frozenset": as_set,
}


def loads(data: bytes, find: Find, what: str, persistent: Persistent | None = None) -> Any:
    """What a pickle holds, made of plain values, `Global` and `Record`, and of what `find` and `persistent` give.

    Time and memory are in proportion to the file's size. **Raises**: UsageError, one line that begins with `what`, for a pickle that is
    cut off or damaged, and for one that names, calls, builds or asks for anything that is not listed.
    """
    return load_from(io.BytesIO(data), find, what, persistent)


def walk(root: Record, entries: Callable[[Record], Iterable[tuple[Any, Any]]], most: int) -> Iterator[tuple[str, Any]]:
    """What lies in a record and in the records in it, by names joined with dots and in the file's order; `entries` are a record's own.

    **Raises**: Refused for a name that is no text, for records more than `DEEPEST` deep, and for names of more than `most` characters in
    all: where a file puts ten records into each of twenty, ten times over, nobody goes through all of them.
    """
    left = most

    def inside(record: Record, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        nonlocal left
        if depth > DEEPEST:
            raise Refused(f"its modules lie more than {DEEPEST} deep")
        for name, value in entries(record):
            if not isinstance(name, str):
                raise Refused(f"it has a {type(name).__name__} in place of a name")
            left -= len(prefix) + len(name) + 1
            if left < 0:
                raise Refused("its modules have far more names in them than the file has bytes")
            if isinstance(value, Record):
                yield from inside(value, f"{prefix}{name}.", depth + 1)
            else:
                yield f"{prefix}{name}", value

    return inside(root, "", 0)


def load_from(stream: io.BytesIO, find: Find, what: str, persistent: Persistent | None = None) -> Any:
    """`loads` of the next pickle in a stream, which is left behind its end: some files hold several, one after the other."""
    at = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(at)
    machine = _Machine(find, persistent, budget=4 * size + SPARE)
    try:
        return machine.run(_opcodes(stream))
    except Refused as err:
        raise UsageError(f"{what} is not read, because {err}; get it again from its publisher, and do not open it with pickle") from None
    except UsageError:
        raise
    except Exception as err:  # whatever damaged bytes lead to
        raise UsageError(f"{what} is no complete pickle ({type(err).__name__}: {err}); get it again from its publisher") from None


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    for code, arg, _ in pickletools.genops(stream):
        yield code.name, arg


def _key(value: Any) -> Any:
    """A dictionary's key. **Raises**: Refused for one whose hash takes time: nested, or a number of any length."""
    parts = value if isinstance(value, tuple) and len(value) < 16 else (value,)
    if all(isinstance(part, KEYS) and not (isinstance(part, int) and part.bit_length() > 63) for part in parts):
        return value
    raise Refused(f"it has a {type(value).__name__} as a key")


PUSHED = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NEVER = {
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "it takes an object from Python's extension registry"),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), "it asks for a buffer outside of the file"),
}


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, find: Find, persistent: Persistent | None, budget: int) -> None:
        self.find, self.persistent, self.budget = find, persistent, budget
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.steps: Mapping[str, Callable[[Any], None]] = {
            "MARK": self._mark,
            "POP": self._pop,
            "POP_MARK": lambda _: self._drop_mark(),
            "DUP": lambda _: self.push(self.stack[-1]),
            "LIST": lambda _: self.push(self._since_mark()),
            "TUPLE": lambda _: self.push(tuple(self._since_mark())),
            "DICT": self._dict,
            "FROZENSET": lambda _: self.push(as_set(self._since_mark())),
            "APPEND": lambda _: self._extend([self.stack.pop()]),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "SETITEM": self._set_item,
            "SETITEMS": lambda _: self._set_items(self._since_mark()),
            "ADDITEMS": self._add_items,
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda index: self.push(self.memo[index])),
            "MEMOIZE": lambda _: self._put(len(self.memo)),
            "GLOBAL": lambda named: self._name(*named.split(" ", 1)),
            "STACK_GLOBAL": self._stack_global,
            "REDUCE": self._reduce,
            "NEWOBJ": self._reduce,
            "NEWOBJ_EX": self._new_with_options,
            "INST": self._inst,
            "OBJ": self._obj,
            "BUILD": self._build,
            "PERSID": self._stored,
            "BINPERSID": lambda _: self._stored(self.stack.pop()),
            "PROTO": self._protocol,
            "FRAME": lambda _: None,
        }

    def run(self, opcodes: Iterable[tuple[str, Any]]) -> Any:
        for name, arg in opcodes:
            if name in PUSHED:
                self.push(arg)
            elif name in FRESH:
                self.push(FRESH[name]())
            elif name in TUPLES:
                count = TUPLES[name]
                self.stack[-count:] = [tuple(self._last(count))]
            elif name in NEVER:
                raise Refused(NEVER[name])
            elif name == "STOP":
                return self.stack.pop()
            else:
                self.steps[name](arg)
        raise Refused("it has no end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("it takes more than it has")
        return self.stack[-count:]

    def _protocol(self, version: int) -> None:
        if version > NEWEST:
            raise Refused(f"it is of protocol {version}, and {NEWEST} is the newest that is known")

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.marks.pop()
        return found

    def _drop_mark(self) -> None:
        self._since_mark()

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _dict(self, _: Any) -> None:
        pairs = self._since_mark()
        self.push({})
        self._set_items(pairs)

    def _extend(self, values: list[Any]) -> None:
        into = self.stack[-1]
        if type(into) not in (list, Record):
            raise Refused(f"it appends to a {type(into).__name__}")
        (into.items if isinstance(into, Record) else into).extend(values)

    def _set_item(self, _: Any) -> None:
        pair = self._last(2)
        del self.stack[-2:]
        self._set_items(pair)

    def _set_items(self, pairs: list[Any]) -> None:
        into = self.stack[-1]
        if type(into) not in (dict, Record):
            raise Refused(f"it puts entries into a {type(into).__name__}")
        entries = into.entries if isinstance(into, Record) else into
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            entries[_key(key)] = value

    def _add_items(self, _: Any) -> None:
        values = self._since_mark()
        if type(self.stack[-1]) is not set:
            raise Refused(f"it adds to a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(_key(value) for value in values)

    def _name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if self.find(full) is None:
            raise Refused(f"it asks for {full[:80]}, which is not among the names that are known to be harmless")
        self.push(Global(full))

    def _stack_global(self, _: Any) -> None:
        module, name = self._last(2)
        del self.stack[-2:]
        if type(module) is not str or type(name) is not str:
            raise Refused("it names something by what is no text")
        self._name(module, name)

    def _spend(self, arguments: int) -> None:
        self.budget -= 1 + arguments
        if self.budget < 0:
            raise Refused("its calls have far more arguments than the file has bytes")

    def _call(self, made: Any, args: Any, options: Any = None) -> None:
        """Put onto the stack what the caller's function for a name makes of the arguments."""
        if type(made) is not Global or type(args) is not tuple or type(options) not in (dict, type(None)):
            raise Refused(f"it calls a {type(made).__name__} with a {type(args).__name__}")
        self._spend(len(args) + len(options or ()))
        self._spend(sum(len(arg) for arg in (*args, *(options or {}).values()) if isinstance(arg, SIZED)))
        make = self.find(made.name)
        if make is None:
            raise Refused(f"it calls {made.name}")
        if options:
            if not all(type(key) is str for key in options):
                raise Refused("it has options without names")
            self.push(Record(made.name, args, dict(options)))
        else:
            self.push(make(*args))

    def _reduce(self, _: Any) -> None:
        made, args = self._last(2)
        del self.stack[-2:]
        self._call(made, args)

    def _new_with_options(self, _: Any) -> None:
        made, args, options = self._last(3)
        del self.stack[-3:]
        self._call(made, args, options)

    def _inst(self, named: str) -> None:
        args = tuple(self._since_mark())
        self._name(*named.split(" ", 1))
        self._call(self.stack.pop(), args)

    def _obj(self, _: Any) -> None:
        made, *args = self._since_mark()
        self._call(made, tuple(args))

    def _build(self, _: Any) -> None:
        into, state = self._last(2)
        self.stack.pop()
        if type(into) is Record:
            into.state = state
        elif type(into) is not dict:  # a mapping class may have attributes, which a plain dictionary has not
            raise Refused(f"it writes attributes into a {type(into).__name__}")

    def _stored(self, key: Any) -> None:
        if self.persistent is None:
            raise Refused("it asks for an object outside of the file")
        self.push(self.persistent(key))
