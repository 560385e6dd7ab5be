"""Hostile pickles leave no trace, and honest ones are read: every family of opcodes that can import, call, build or ask for something."""

import copyreg
import io
import pickle
import sys
import time
from collections import OrderedDict

import numpy as np
import pytest

from fewstep.errors import UsageError
from fewstep.nets.readers.pickled_numpy import NUMPY, array
from fewstep.nets.readers.safe_pickle import PLAIN, Global, Record, inert, load_from, loads, token
from support.each import each
from support.hostile import MODULE, damaged, hostile, text

ALLOWED = {**PLAIN, **NUMPY, "models.Net": inert("models.Net"), "torch.FloatStorage": token}


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
    data = b"\x80\x02cmodels\nNet\n(K\x02t\x81}" + text("width") + b"K\x03sb."
    found = loads(data, ALLOWED.get, "x")
    assert isinstance(found, Record)
    assert (found.name, found.args, found.state) == ("models.Net", (2,), {"width": 3})
    assert loads(b"cmodels\nNet\n.", ALLOWED.get, "x") == Global("models.Net")
    options = loads(b"\x80\x04cmodels\nNet\n)}" + text("width") + b"K\x03s\x92.", ALLOWED.get, "x")
    assert options.options == {"width": 3}


def test_persistent_ids_are_the_callers():
    for data in (b"Pkey\n.", text("key") + b"Q."):
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


def test_python_2_wrote_bytes_astext():
    raw = b"\x80\x02}U\x04dataU\x02\xff\x00s."
    assert loads(raw, ALLOWED.get, "x") == {"data": "\xff\x00"}


def test_time_is_in_proportion_to_the_file():
    many = b"(" + b"K\x01" * 100_000 + b"l"  # a list that is then copied by each of many calls
    start = time.process_time()
    with pytest.raises(UsageError, match="far more arguments"):
        loads(many + b"q\x000" + b"cbuiltins\nset\n(h\x00tR0" * 3000 + b"N.", ALLOWED.get, "x")
    laughs = b"]q\x00" + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(60)) + b"."
    assert len(loads(laughs, ALLOWED.get, "x")) == 10  # ten to the sixtieth, of which nobody makes a copy
    assert len(loads(b"]" + b"\x85" * 200_000 + b".", ALLOWED.get, "x")) == 1
    loop = loads(b"]q\x00h\x00a.", ALLOWED.get, "x")
    assert loop[0] is loop
    assert time.process_time() - start < 10


def test_several_pickles_in_a_stream():
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps("two") + b"rest")
    assert [load_from(stream, ALLOWED.get, "x") for _ in range(2)] == [1, "two"]
    assert stream.read() == b"rest"
