"""Hostile checkpoints through the readers of their formats: no trace is left, and time and memory stay in proportion to the file."""

import copyreg
import io
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from fewstep.errors import UsageError
from fewstep.nets.loading import read
from fewstep.nets.readers.torchscript import read_torchscript
from support.hostile import damaged, hostile, text

PKL, PT = "edm-x.pkl", "edm_imagenet8_ema.pt"


def refused(path, *words):
    """What the reader says, within seconds."""
    start = time.process_time()
    with pytest.raises(UsageError) as caught:
        read(path)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600, said
    assert time.process_time() - start < 10
    assert all(word in said for word in words), said


def archive(path, data: bytes, compression: int = zipfile.ZIP_STORED, **storages: bytes) -> Path:
    """A file as torch writes one, with this pickle in it."""
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("x/data.pkl", data)
        for name, numbers in storages.items():
            made.writestr(f"x/data/{name[1:]}", numbers)
    return path


def test_the_corpus_through_the_readers(tmp_path):
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        (tmp_path / "in").mkdir()
        corpus = [b"N.", *hostile(tmp_path / "trace").values(), *damaged().values()]
        before, registry = set[str](), dict(copyreg.dispatch_table)
        for data in corpus:
            pkl, pt, older = (tmp_path / "in" / name for name in (PKL, PT, "edm_imagenet8_older.pt"))
            pkl.write_bytes(data)
            archive(pt, data)
            older.write_bytes(data)
            for path in (pkl, pt, older):
                refused(path)
            assert [p.name for p in tmp_path.iterdir()] == ["in"]
            assert not hasattr(OrderedDict, "fewstep_was_here")
            before = before or set(sys.modules)  # the first one is harmless, and imports what readers need
        assert set(sys.modules) == before
        assert copyreg.dispatch_table == registry
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)


def nested(kind: bytes, wide: int, deep: int, named: str = "_modules") -> bytes:
    """Records that hold the one before `wide` times, `deep` times over: wide ** deep of them for whoever goes through all."""
    made = b""
    for level in range(deep):
        held = b"}(" + b"".join(text(str(i)) + b"h" + bytes([level - 1]) for i in range(wide if level else 0)) + b"u"
        made += kind + (b"}(" + text(named) + held + b"u" if named else held) + b"bq" + bytes([level]) + b"0"
    return made + b"h" + bytes([deep - 1])


def test_modules_in_modules_in_modules(tmp_path):
    net = b"cmodels.networks_edm\nSongUNet\n)R"
    (tmp_path / PKL).write_bytes(b"\x80\x02}" + text("ema") + nested(net, 10, 16) + b"s.")
    refused(tmp_path / PKL, "far more names in them")
    (tmp_path / PKL).write_bytes(b"\x80\x02}" + text("ema") + net + b"q\x00}" + text("_modules") + b"}" + text("a") + b"h\x00ssbs.")
    refused(tmp_path / PKL, "far more names in them")  # one in itself
    script = archive(tmp_path / "script.pt", b"\x80\x02" + nested(b"c__torch__.M\nM\n)R", 4, 30, "") + b".")
    start = time.process_time()
    with pytest.raises(UsageError, match="far more names in them"):
        read_torchscript(script.read_bytes(), "x")
    numbered = net + b"}" + text("_parameters") + b"}K\x01Nssb"
    (tmp_path / PKL).write_bytes(b"\x80\x02}" + text("ema") + numbered + b"s.")
    refused(tmp_path / PKL, "in place of a name")
    nothing = b"}(" + b"".join(b"X\x04\x00\x00\x00%04dN" % i for i in range(2000)) + b"uq\xf00"  # no parameters, in many modules
    many = b"".join(text(str(i)) + net + b"}" + text("_parameters") + b"h\xf0sb" for i in range(2000))
    (tmp_path / PKL).write_bytes(b"\x80\x02" + nothing + b"}" + text("ema") + net + b"}" + text("_modules") + b"}(" + many + b"usbs.")
    refused(tmp_path / PKL, "far more names in them")
    assert time.process_time() - start < 10


def storage(count: int) -> bytes:
    """What pushes a storage of floats, in the format that EDM's pickles have them in."""
    file = io.BytesIO()
    torch.save(torch.zeros(count).storage(), file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    return b"ctorch.storage\n_load_from_bytes\n(B" + len(data).to_bytes(4, "little") + data + b"tR"


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little")


def test_tensors_that_share_a_storage(tmp_path):
    """A hundred tensors of one storage, and a number of one, are more than the file."""
    for times, count, stride in ((100, 1_000_000, 1), (1, 1_000_000, 0)):
        held = 1_000_000 if stride else 1
        call = b"ctorch._utils\n_rebuild_tensor_v2\n(h\x00K\x00" + number(count) + b"\x85" + number(stride) + b"\x85tR"
        tensors = b"}(" + b"".join(text(str(i)) + call for i in range(times)) + b"u"
        net = b"cmodels.networks_edm\nSongUNet\n)R}" + text("_parameters") + tensors + b"sb"
        (tmp_path / PKL).write_bytes(b"\x80\x02" + storage(held) + b"q\x000}" + text("ema") + net + b"s.")
        refused(tmp_path / PKL, "hold far more than the file" if stride else "larger than its storage")
        shared = torch.zeros(held)
        views = {str(i): shared.as_strided((count,), (stride,)) for i in range(times)}
        torch.save(views, tmp_path / PT)
        refused(tmp_path / PT, "hold far more than the file" if stride else "larger than its storage")
        torch.save(views, tmp_path / PT, _use_new_zipfile_serialization=False)
        refused(tmp_path / PT, "hold far more than the file" if stride else "larger than its storage")
    far = {str(i): shared.new_zeros(250_000)[:: 250_000 - 1] for i in range(2)}
    torch.save(far, tmp_path / PT)
    refused(tmp_path / PT, "another network")  # two numbers of each are read, and nothing else


def test_two_large_storages_by_turns_are_not_read_again_and_again(tmp_path):
    """Numbers at the ends of storages, asked for in turn: each would be read whole for two numbers."""
    pair = torch.zeros(250_000), torch.zeros(250_000)
    torch.save({str(i): pair[i % 2][:: 250_000 - 1] for i in range(100)}, tmp_path / PT)
    refused(tmp_path / PT, "hold far more than the file")


def test_archives_that_unpack_to_far_more(tmp_path):
    torch.save({"w": torch.zeros(4_000_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(tmp_path / PT, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(tmp_path / PT, "unpacks to far more than its size")


def test_tensors_of_another_kind(tmp_path):
    for value in (
        torch.zeros(3, 3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.zeros(3, dtype=torch.complex64),
        torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
        torch.nn.Linear(2, 2),
        [torch.zeros(3)],
    ):
        torch.save({"w": value}, tmp_path / PT)
        refused(tmp_path / PT, "are not read, because" if isinstance(value, list) else "is not read, because")
