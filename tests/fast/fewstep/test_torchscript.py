"""TorchScript archives give their tensors, and nothing that they hold is run."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.errors import UsageError
from fewstep.nets.readers.torchscript import read_torchscript
from support.each import each


class Part(nn.Module):
    """Tensors of several types and layouts, shared, empty and none."""

    kernel: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.kernel = [1, 2]
        self.weight = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
        self.register_buffer("small", torch.arange(6).half())
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("turned", torch.arange(12.0).reshape(3, 4).T)
        self.register_buffer("tail", torch.arange(10.0)[4:])
        self.register_buffer("nothing", torch.zeros(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.kernel[0]


@pytest.fixture(scope="module")
def saved() -> tuple[bytes, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = nn.Sequential(Part(), nn.ReLU(), nn.Linear(3, 2))
    file = io.BytesIO()
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.script(module), file)
    return file.getvalue(), module.state_dict()


def test_its_tensors_are_those_of_its_state_dict(saved):
    raw, expected = saved
    found = read_torchscript(raw, "file x.pt")
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        assert found[name].is_contiguous()


def rewritten(raw: bytes, change) -> bytes:
    """The archive with other files: `change(name, data)` gives the new data, or None to leave a file out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out.getvalue()


def module_of(body: bytes) -> bytes:
    """A module whose one attribute `w` is what `body` pushes."""
    return b"\x80\x02c__torch__.m\nNet\n)\x81}X\x01\x00\x00\x00w" + body + b"sb."


def tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...], name: str = "0", count: int = 60) -> bytes:
    """What rebuilds a view of a storage of floats."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    text, kind = name.encode(), b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    place = b"X" + struct.pack("<I", len(text)) + text + b"X\x03\x00\x00\x00cpu"
    key = kind + place + b"J" + struct.pack("<i", count) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + key + b"J" + struct.pack("<i", offset) + numbers(size) + numbers(stride) + b"\x89}tR"


DEEP = b"".join(b"c__torch__.m\nNet\n)\x81}X\x01\x00\x00\x00w" for _ in range(60)) + b"K\x01" + b"sb" * 60
HOSTILE = {
    "a call of the system": (b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00truetR.", "asks for posix.system"),
    "a class of another package": (b"\x80\x02cos\nenviron\n.", "asks for os.environ"),
    "a call in a module": (module_of(b"cbuiltins\neval\n(X\x01\x00\x00\x001tR"), "asks for builtins.eval"),
    "a tensor larger than its storage": (module_of(tensor(0, (100,), (1,))), "larger than its storage"),
    "a tensor that repeats one number": (module_of(tensor(0, (10**9, 100), (0, 0))), "larger than its storage"),
    "a negative stride": (module_of(tensor(5, (3,), (-1,))), "no view of a storage"),
    "a storage that is a path": (module_of(tensor(0, (3,), (1,), "../x")), "cannot be one"),
    "a storage that is not there": (module_of(tensor(0, (3,), (1,), "999")), "truncated, or no TorchScript archive"),
    "a storage of another size": (module_of(tensor(0, (3,), (1,), "0", 7)), "480 bytes in a storage of 28"),
    "no module": (pickle.dumps({"a": 1}, 2), "holds no module, but a dict"),
    "modules in modules without end": (b"\x80\x02" + DEEP + b".", "more than 32 deep"),
    "a module in itself": (b"\x80\x02c__torch__.m\nNet\n)\x81q\x00}X\x01\x00\x00\x00wh\x00sb.", "more than 32 deep"),
}


@each("what", sorted(HOSTILE))
def test_hostile_archives_are_refused_in_a_line(saved, what):
    data, told = HOSTILE[what]
    raw = rewritten(saved[0], lambda name, old: data if name.endswith("/data.pkl") else old)
    with pytest.raises(UsageError, match=told) as raised:
        read_torchscript(raw, "file x.pt")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("file x.pt")


def test_broken_archives_are_refused_in_a_line(saved):
    raw = saved[0]
    flipped = bytearray(raw)
    place = raw.index(np.arange(12, dtype="<f4").tobytes())
    flipped[place + 5] ^= 1
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02N.")
        archive.writestr("x/data/0", bytes(64 << 20))
    for broken, told in (
        (raw[:-200], "truncated, or no TorchScript archive"),
        (b"<html>not found</html>", "truncated, or no TorchScript archive"),
        (b"", "truncated, or no TorchScript archive"),
        (bytes(flipped), "CRC"),
        (rewritten(raw, lambda name, old: None if name.endswith("data.pkl") else old), "has no data.pkl"),
        (bomb.getvalue(), "far more than its size"),
    ):
        with pytest.raises(UsageError, match=told) as raised:
            read_torchscript(broken, "file x.pt")
        assert "\n" not in str(raised.value)
