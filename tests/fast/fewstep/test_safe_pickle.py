"""Hostile pickles leave no trace, and honest ones are read: every family of opcodes that can import, call, build or ask for something."""

import copyreg
import io
import pickle
import struct
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from fewstep.errors import UsageError
from fewstep.nets.readers.pickled_numpy import NUMPY, array
from fewstep.nets.readers.safe_pickle import PLAIN, Global, Record, inert, load_from, loads, token
from support.each import each

MODULE = "antigravity"  # which nothing imports by itself, and whose import shows
ALLOWED = {**PLAIN, **NUMPY, "models.Net": inert("models.Net"), "torch.FloatStorage": token}


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _system(path: Path) -> bytes:
    return _text(f"touch {path}")


def hostile(trace: Path) -> dict[str, bytes]:
    """Pickles that make a file, import a module or change an object where Python's unpickler opens them; by what they do it with."""
    run, named = _system(trace), b"\x80\x04" + _text("posix") + _text("system") + b"\x93"
    net, function = b"cmodels\nNet\n", b"ccollections\nOrderedDict\n"
    deep = b"\x80\x02" + b")" + b"\x85" * 100_000
    return {
        "GLOBAL alone": f"c{MODULE}\nfly\n.".encode(),
        "GLOBAL with a dotted name": b"\x80\x04" + _text("collections") + _text("OrderedDict.__init__.__globals__") + b"\x93.",
        "GLOBAL REDUCE": b"cposix\nsystem\n(" + run + b"tR.",
        "GLOBAL of builtins": b"cbuiltins\neval\n(" + _text(f"open({str(trace)!r}, 'w')") + b"tR.",
        "GLOBAL getattr": b"cbuiltins\ngetattr\n(" + net + _text("__class__") + b"tR.",
        "STACK_GLOBAL": b"\x80\x04" + _text(MODULE) + _text("fly") + b"\x93.",
        "STACK_GLOBAL REDUCE": named + b"(" + run + b"tR.",
        "STACK_GLOBAL of no text": b"\x80\x04K\x01K\x02\x93.",
        "STACK_GLOBAL from the memo": b"\x80\x04" + _text("posix") + b"\x940" + _text("system") + b"\x940h\x00h\x01\x93(" + run + b"tR.",
        "INST": b"(" + run + b"iposix\nsystem\n.",
        "INST of a class": b"(" + _text(MODULE) + b"iimportlib\nimport_module\n.",
        "OBJ": b"(cposix\nsystem\n" + run + b"o.",
        "OBJ of a listed name that is no class": b"(ctorch\nFloatStorage\no.",
        "NEWOBJ": b"\x80\x02cposix\nsystem\n" + run + b"\x85\x81.",
        "NEWOBJ of Popen": b"\x80\x02csubprocess\nPopen\n" + run + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cposix\nsystem\n" + run + b"\x85}\x92.",
        "NEWOBJ_EX with options": b"\x80\x04csubprocess\nPopen\n)}" + _text("args") + run + b"s\x92.",
        "REDUCE of text": _text("posix.system") + b"(" + run + b"tR.",
        "REDUCE with a list": net + b"]R.",
        "REDUCE of a token": b"ctorch\nFloatStorage\n)R.",
        "BUILD of a name": function + b"}" + _text("fewstep_was_here") + b"K\x01sb.",
        "BUILD of a name with slots": function + b"N}" + _text("fewstep_was_here") + b"K\x01s\x86b.",
        "BUILD of __setstate__": b"cbuiltins\nobject\n)\x81}" + _text("__setstate__") + b"cposix\nsystem\nsb" + run + b"b.",
        "BUILD of a list": b"]}b.",
        "APPEND to a name": function + b"K\x01a.",
        "APPENDS to a tuple": b")(K\x01e.",
        "SETITEM of a name": function + _text("x") + b"K\x01s.",
        "SETITEMS of a list": b"](K\x00K\x01u.",
        "ADDITEMS to a dict": b"\x80\x04}(K\x01\x90.",
        "copyreg": b"ccopyreg\n_reconstructor\n(cposix\nsystem\ncbuiltins\nobject\nNtR.",
        "copyreg.add_extension": b"ccopyreg\nadd_extension\n(" + _text("posix") + _text("system") + b"K\xf1tR.",
        "EXT1": b"\x80\x02\x82\xf0(" + run + b"tR.",
        "EXT2": b"\x80\x02\x83\xf0\x00(" + run + b"tR.",
        "EXT4": b"\x80\x02\x84\xf0\x00\x00\x00(" + run + b"tR.",
        "PERSID": b"Psomething\n.",
        "BINPERSID": _text("something") + b"Q.",
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


@pytest.fixture
def extension():
    """A function in Python's own registry, where EXT opcodes find it without a question."""
    copyreg.add_extension("posix", "system", 0xF0)
    yield
    copyreg.remove_extension("posix", "system", 0xF0)


def test_hostile_pickles_leave_no_trace(tmp_path, extension):
    assert MODULE not in sys.modules
    before, registry = set(sys.modules), dict(copyreg.dispatch_table)
    for name, data in {**hostile(tmp_path / "trace"), **damaged()}.items():
        with pytest.raises(UsageError) as caught:
            loads(data, ALLOWED.get, "file x.pkl")
        assert str(caught.value).startswith("file x.pkl is n"), name
        assert "\n" not in str(caught.value), name
        assert len(str(caught.value)) < 400, name
        assert not list(tmp_path.iterdir()), f"{name} made a file"
        assert set(sys.modules) == before, f"{name} imported something"
        assert not hasattr(OrderedDict, "fewstep_was_here"), f"{name} changed a class"
        assert copyreg.dispatch_table == registry, f"{name} changed a registry"


def test_the_corpus_is_hostile(tmp_path):
    """Python's unpickler does what these ask for (here of a function that is harmless), so the corpus tests something."""
    trace = tmp_path / "trace"
    for data in (value for name, value in hostile(trace).items() if name in ("GLOBAL REDUCE", "INST", "STACK_GLOBAL REDUCE", "OBJ")):
        pickle.loads(data)
        assert trace.exists()
        trace.unlink()


def test_every_opcode_is_decided():
    """None of Python's opcodes is unknown to the machine: each is read, or refused by name."""
    import pickletools

    from fewstep.nets.readers import safe_pickle as own

    machine = own._Machine(ALLOWED.get, None, 10)
    decided = {*own.PUSHED, *own.FRESH, *own.TUPLES, *own.NEVER, *machine.steps, "STOP"}
    assert {code.name for code in pickletools.opcodes} == decided


def test_what_the_file_calls_is_kept_as_a_record():
    data = b"\x80\x02cmodels\nNet\n(K\x02t\x81}" + _text("width") + b"K\x03sb."
    found = loads(data, ALLOWED.get, "x")
    assert isinstance(found, Record)
    assert (found.name, found.args, found.state) == ("models.Net", (2,), {"width": 3})
    assert loads(b"cmodels\nNet\n.", ALLOWED.get, "x") == Global("models.Net")
    options = loads(b"\x80\x04cmodels\nNet\n)}" + _text("width") + b"K\x03s\x92.", ALLOWED.get, "x")
    assert options.options == {"width": 3}


def test_persistent_ids_are_the_callers():
    for data in (b"Pkey\n.", _text("key") + b"Q."):
        assert loads(data, ALLOWED.get, "x", lambda key: ("stored", key)) == ("stored", "key")


@each("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_honest_values_are_what_python_reads(protocol):
    shared = [1, "a"]
    value = {
        "none": None,
        "truth": [True, False],
        "int": [0, -1, 255, 65536, 2**40, -(2**70)],
        "float": [0.5, float("inf")],
        "text": ["", "snow ☃", "line\nbreak"],
        "bytes": [b"", b"\x00\xff"],
        "tuple": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "dict": {1: {"x": ()}},
        "shared": [shared, shared],
        "set": {1, 2},
        "ordered": OrderedDict(a=1, b=2),
    }
    latin = {"_codecs.encode": lambda text, how: text.encode("latin-1"), "builtins.bytes": bytes, "__builtin__.bytes": bytes}
    allowed = {**ALLOWED, **latin, "__builtin__.dict": PLAIN["builtins.dict"]}
    found = loads(pickle.dumps(value, protocol), allowed.get, "x")
    assert found == pickle.loads(pickle.dumps(value, protocol))
    assert found["shared"][0] is found["shared"][1]


def test_numpy_arrays_and_numbers():
    for made in (np.arange(6, dtype=np.uint8).reshape(2, 3), np.asfortranarray(np.eye(3)), np.array([1, 2], ">i4"), np.zeros((0, 3))):
        found = array(loads(pickle.dumps(made), ALLOWED.get, "x"), "x")
        assert found.dtype == made.dtype
        assert np.array_equal(found, made)
    assert loads(pickle.dumps(np.float64(0.7)), ALLOWED.get, "x") == 0.7
    for wrong in (b"N.", b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR."):
        with pytest.raises(UsageError, match="no array"):
            array(loads(wrong, ALLOWED.get, "x"), "x")
    short = pickle.dumps(np.arange(3, dtype=np.uint8)).replace(b"C\x03\x00\x01\x02", b"C\x02\x00\x01")
    with pytest.raises(UsageError):
        array(loads(short, ALLOWED.get, "x"), "x")
    asked = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L99999999999L\ntU\x01btR."
    assert loads(asked, ALLOWED.get, "x").state is None  # nothing was allocated


def test_python_2_wrote_bytes_as_text():
    raw = b"\x80\x02}U\x04dataU\x02\xff\x00s."
    assert loads(raw, ALLOWED.get, "x") == {"data": "\xff\x00"}


def test_time_is_in_proportion_to_the_file():
    many = b"(" + b"K\x01" * 100_000 + b"l"  # a list that is then copied by each of many calls
    start = time.perf_counter()
    with pytest.raises(UsageError, match="far more arguments"):
        loads(many + b"q\x000" + b"cbuiltins\nset\n(h\x00tR0" * 3000 + b"N.", ALLOWED.get, "x")
    laughs = b"]q\x00" + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(60)) + b"."
    assert len(loads(laughs, ALLOWED.get, "x")) == 10  # ten to the sixtieth, of which nobody makes a copy
    assert len(loads(b"]" + b"\x85" * 200_000 + b".", ALLOWED.get, "x")) == 1
    loop = loads(b"]q\x00h\x00a.", ALLOWED.get, "x")
    assert loop[0] is loop
    assert time.perf_counter() - start < 10


def test_several_pickles_in_a_stream():
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps("two") + b"rest")
    assert [load_from(stream, ALLOWED.get, "x") for _ in range(2)] == [1, "two"]
    assert stream.read() == b"rest"
