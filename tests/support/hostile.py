"""A corpus of hostile and of damaged pickles, for everything that reads some."""

import pickle
import struct
from pathlib import Path

import numpy as np

MODULE = "antigravity"  # which nothing imports by itself, and whose import shows


def text(value: str) -> bytes:
    """The opcode that pushes a short text."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _system(path: Path) -> bytes:
    return text(f"touch {path}")


def hostile(trace: Path) -> dict[str, bytes]:
    """Pickles that make a file, import a module or change an object where Python's unpickler opens them; by what they do it with."""
    run, named = _system(trace), b"\x80\x04" + text("posix") + text("system") + b"\x93"
    net, function = b"cmodels\nNet\n", b"ccollections\nOrderedDict\n"
    deep = b"\x80\x02" + b")" + b"\x85" * 100_000
    return {
        "GLOBAL alone": f"c{MODULE}\nfly\n.".encode(),
        "GLOBAL with a dotted name": b"\x80\x04" + text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93.",
        "GLOBAL REDUCE": b"cposix\nsystem\n(" + run + b"tR.",
        "GLOBAL of builtins": b"cbuiltins\neval\n(" + text(f"open({str(trace)!r}, 'w')") + b"tR.",
        "GLOBAL getattr": b"cbuiltins\ngetattr\n(" + net + text("__class__") + b"tR.",
        "STACK_GLOBAL": b"\x80\x04" + text(MODULE) + text("fly") + b"\x93.",
        "STACK_GLOBAL REDUCE": named + b"(" + run + b"tR.",
        "STACK_GLOBAL of no text": b"\x80\x04K\x01K\x02\x93.",
        "STACK_GLOBAL from the memo": b"\x80\x04" + text("posix") + b"\x940" + text("system") + b"\x940h\x00h\x01\x93(" + run + b"tR.",
        "INST": b"(" + run + b"iposix\nsystem\n.",
        "INST of a class": b"(" + text(MODULE) + b"iimportlib\nimport_module\n.",
        "OBJ": b"(cposix\nsystem\n" + run + b"o.",
        "OBJ of a listed name that is no class": b"(ctorch\nFloatStorage\no.",
        "NEWOBJ": b"\x80\x02cposix\nsystem\n" + run + b"\x85\x81.",
        "NEWOBJ of Popen": b"\x80\x02csubprocess\nPopen\n" + run + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cposix\nsystem\n" + run + b"\x85}\x92.",
        "NEWOBJ_EX with options": b"\x80\x04csubprocess\nPopen\n)}" + text("args") + run + b"s\x92.",
        "REDUCE of text": text("posix.system") + b"(" + run + b"tR.",
        "REDUCE with a list": net + b"]R.",
        "REDUCE of a token": b"ctorch\nFloatStorage\n)R.",
        "BUILD of a name": function + b"}" + text("fewstep_was_here") + b"K\x01sb.",
        "BUILD of a name with slots": function + b"N}" + text("fewstep_was_here") + b"K\x01s\x86b.",
        "BUILD of __setstate__": b"cbuiltins\nobject\n)\x81}" + text("__setstate__") + b"cposix\nsystem\nsb" + run + b"b.",
        "BUILD of a list": b"]}b.",
        "APPEND to a name": function + b"K\x01a.",
        "APPENDS to a tuple": b")(K\x01e.",
        "SETITEM of a name": function + text("x") + b"K\x01s.",
        "SETITEMS of a list": b"](K\x00K\x01u.",
        "ADDITEMS to a dict": b"\x80\x04}(K\x01\x90.",
        "copyreg": b"ccopyreg\n_reconstructor\n(cposix\nsystem\ncbuiltins\nobject\nNtR.",
        "copyreg.add_extension": b"ccopyreg\nadd_extension\n(" + text("posix") + text("system") + b"K\xf1tR.",
        "EXT1": b"\x80\x02\x82\xf0(" + run + b"tR.",
        "EXT2": b"\x80\x02\x83\xf0\x00(" + run + b"tR.",
        "EXT4": b"\x80\x02\x84\xf0\x00\x00\x00(" + run + b"tR.",
        "PERSID": b"Psomething\n.",
        "BINPERSID": text("something") + b"Q.",
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "READONLY_BUFFER": b"\x80\x05\x97\x98.",
        "protocol 6": b"\x80\x06N.",
        "numpy array of objects": np.array([Path("x")], dtype=object).dumps(),
        "hash of a nested key": b"\x80\x02}" + b")" + b"2\x86" * 60 + b"Ns.",
        "hash of a list": b"}]Ns.",
        "hash of a long number": b"}" + b"\x8b" + struct.pack("<i", 40) + b"\x01" * 40 + b"Ns.",
        "names of a file's own module": b"cmodels\nNet2\n)R.",
        "deep, then cut off": deep,
    }


def damaged() -> dict[str, bytes]:
    """Pickles that are none, or announce more than they have."""
    good = pickle.dumps({"a": [1, 2, 3], "b": b"x" * 100})
    return {
        "empty": b"",
        "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
        **{f"cut at {n}": good[:n] for n in range(1, len(good), 7)},
        "unknown opcode": b"\xff.",
        "4 GiB of bytes announced": b"B\xff\xff\xff\xff.",
        "8 EiB of bytes announced": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        "8 EiB of text announced": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
        "8 EiB of a byte array announced": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
        "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "a negative length": b"\x8b\xff\xff\xff\xff.",
        "memo without an entry": b"j\xff\xff\xff\xff.",
        "an empty stack": b".",
        "a mark that is not there": b"t.",
        "pairs without a partner": b"}(K\x01u.",
        "text that is none": b"X\x02\x00\x00\x00\xff\xff.",
    }
