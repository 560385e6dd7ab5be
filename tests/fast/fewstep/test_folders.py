"""Folders of images as data: what is read, and what is refused in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.jobs.models import load_data
from fewstep.data.folders import image_folder
from fewstep.errors import UsageError

RNG = np.random.RandomState(0)


def picture(path: Path, size: tuple[int, int] = (12, 12), mode: str = "RGB", **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "CMYK": 4}[mode]
    levels = RNG.randint(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode == "RGBA":
        levels[..., 3] = 255
    Image.fromarray(levels.squeeze(), mode=mode).save(path, **how)
    return path


def test_files_of_every_format_become_one_size(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.jpg", "c.webp", "d.JPEG", "e.png")):
        picture(tmp_path / name, (12 + i, 20))
    data = image_folder(tmp_path)
    assert data.shape == (3, 12, 12)
    assert (len(data.train_x), len(data.heldout_x), data.classes) == (4, 1, 0)
    assert np.abs(data.train_x[:]).max() <= 1
    assert image_folder(tmp_path).digest() == data.digest()
    assert image_folder(tmp_path, (1, 8, 8)).shape == (1, 8, 8)
    (tmp_path / "notes.txt").write_text("not an image")
    assert image_folder(tmp_path).digest() == data.digest()


def test_pixels_are_the_files_own(tmp_path: Path) -> None:
    """Of the right size nothing is resampled: level / 127.5 - 1."""
    levels = RNG.randint(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(levels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    data = load_data(str(tmp_path), (3, 8, 8))
    found = np.concatenate([data.train_x[:], data.heldout_x[:]]).transpose(0, 2, 3, 1)
    assert sorted(np.round((found + 1) * 127.5).astype(np.uint8).tolist()) == sorted(levels.tolist())


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    for kind, count in (("zebra", 5), ("ant", 10)):
        for i in range(count):
            picture(tmp_path / kind / f"{i}.png")
    data = image_folder(tmp_path)
    assert data.classes == 2
    assert np.bincount(data.train_y).tolist() == [8, 4]
    assert np.bincount(data.heldout_y).tolist() == [2, 1]


def test_modes_that_say_the_same_are_read_alike(tmp_path: Path) -> None:
    """Grey, palette, opaque RGBA and CMYK become RGB; a picture that its EXIF turns is turned."""
    for mode, name in (("L", "grey.png"), ("RGBA", "opaque.png"), ("CMYK", "print.jpg")):
        picture(tmp_path / name, mode=mode)
    Image.fromarray(RNG.randint(0, 256, (12, 12, 3), dtype=np.uint8)).quantize(16).save(tmp_path / "palette.png")
    assert image_folder(tmp_path).shape == (3, 12, 12)
    turned = tmp_path / "turned"
    wide = np.zeros((12, 24, 3), np.uint8)
    wide[:, 12:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right
    for name in ("a.png", "b.png"):
        turned.mkdir(exist_ok=True)
        Image.fromarray(wide).save(turned / name, exif=exif)
    image = image_folder(turned, (3, 12, 12)).train_x[:1][0]  # the middle of 24 rows: black above, white below
    assert image[:, :6].max() == -1
    assert image[:, 6:].min() == 1


def test_what_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    def refused(folder: Path, told: str, shape: tuple[int, ...] | None = None) -> None:
        with pytest.raises(UsageError, match=told) as caught:
            image_folder(folder, shape)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere", "is no folder of images")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "holds no image")
    picture(empty / "one.png")
    refused(empty, "holds one image")
    good = tmp_path / "good"
    for i in range(3):
        picture(good / f"{i}.png")
    refused(good, r"0\.png is 12x12, smaller than the 16x16 asked for; remove it or ask for less", (3, 16, 16))
    refused(good, r"grey or RGB squares, .* and the model has \[3, 8, 12\]", (3, 8, 12))
    refused(good, r"the model has \[4, 8, 8\]", (4, 8, 8))
    (good / "3.png").write_bytes((good / "0.png").read_bytes()[:60])
    refused(good, r"3\.png cannot be read as an image")
    (good / "3.png").write_text("text")
    refused(good, r"3\.png cannot be read as an image", (3, 8, 8))
    (good / "3.png").unlink()
    Image.fromarray(RNG.randint(0, 2**16, (12, 12)).astype(np.uint16)).save(good / "deep.png")
    refused(good, r"deep\.png has more than 8 bits a channel")
    (good / "deep.png").unlink()
    header = b"\x89PNG\r\n\x1a\n"
    deep = np.zeros((12, 1 + 12 * 6), np.uint8)  # 16 bits of red, green and blue behind a filter byte

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0))
    (good / "deep.png").write_bytes(header + size + chunk(b"IDAT", zlib.compress(deep.tobytes())) + chunk(b"IEND", b""))
    refused(good, r"deep\.png has more than 8 bits a channel")
    (good / "deep.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n")
    refused(good, r"deep\.png cannot be read as an image")
    (good / "deep.png").unlink()
    seen_through = RNG.randint(0, 256, (12, 12, 4), dtype=np.uint8)
    Image.fromarray(seen_through, mode="RGBA").save(good / "glass.png")
    refused(good, r"glass\.png is transparent in places")
    (good / "glass.png").unlink()
    picture(good / "sub" / "0.png")
    refused(good, r"holds images \(0\.png, \.\.\.\) beside subfolders \(sub, \.\.\.\)")
