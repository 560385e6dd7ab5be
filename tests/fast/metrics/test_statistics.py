"""Statistics of others: what is read, and what is refused in one line."""

import dataclasses
import zipfile

import numpy as np
import pytest
from torch.testing import assert_close

from fewstep.errors import Unavailable, UsageError
from metrics import metric_named
from metrics.features.statistics import read_statistics, space_of
from metrics.metric import Drawn
from metrics.moments import Moments, frechet_distance
from support.evidence import Projection
from support.featured import drawn, of_features

REAL = drawn(5, 40)
MU, SIGMA = REAL.astype(float).mean(axis=0), np.cov(REAL.astype(float), rowvar=False)


def written(folder, name, **arrays):
    np.savez(folder / name, **arrays)
    return folder / name


def test_a_distance_to_statistics_is_that_to_their_images(tmp_path):
    found = read_statistics(written(tmp_path, "cifar10-32x32.npz", mu=MU, sigma=SIGMA))
    assert (found.mode, found.side) == ("", 32)
    space = space_of(found, Projection(name="inception"), 6, 32)
    own = of_features(drawn(0, 30), REAL)
    bare = dataclasses.replace(own, reference=dataclasses.replace(own.reference, spaces={"inception": space}))
    ours, theirs = metric_named("fid")(own), metric_named("fid")(bare)
    assert_close(ours.value, theirs.value)
    assert_close(ours.value, frechet_distance(Moments.of(drawn(0, 30)), Moments.of(REAL)))
    assert theirs.protocol["statistics"] == f"cifar10-32x32-{found.digest[:16]}"
    assert (theirs.protocol["reference_count"], theirs.protocol["rank_deficient"]) == (None, False)
    few = dataclasses.replace(bare, images=bare.images[:5], labels=bare.labels[:5], features={"inception": drawn(0, 5)})
    assert metric_named("fid")(few).protocol["rank_deficient"] is True


def test_names_tell_mode_and_resolution(tmp_path):
    for name, mode, side in (
        ("cifar10_clean_train_32.npz", "clean", 32),
        ("cifar10_legacy_tensorflow_test_32.npz", "legacy_tensorflow", 32),
        ("cifar10_clean_clip_vit_b_32_train_32.npz", "clean_clip_vit_b_32", 32),
        ("mine_legacy_pytorch_custom_na.npz", "legacy_pytorch", 0),
        ("imagenet-64x64-baseline.npz", "", 64),
        ("mine.npz", "", 0),
    ):
        found = read_statistics(written(tmp_path, name, mu=MU, sigma=SIGMA))
        assert (found.mode, found.side) == (mode, side)


def test_other_extractors_and_resolutions_are_refused(tmp_path):
    inception, clean, lite = (Projection(name=name) for name in ("inception", "inception_clean", "efficientnet_lite0"))
    for name, extractor, dimensions, told in (
        ("cifar10-32x32.npz", inception, 2048, "of 6 features, and inception has 2048"),
        ("ffhq-64x64.npz", inception, 6, "of images of 64x64, and these are 32x32"),
        ("cifar10_clean_train_32.npz", inception, 6, "of mode clean, and inception is legacy_tensorflow; measure fid_clean"),
        ("cifar10_legacy_tensorflow_train_32.npz", clean, 6, "is clean; measure fid_legacy_tensorflow"),
        ("cifar10_clean_clip_vit_b_32_train_32.npz", clean, 6, "of mode clean_clip_vit_b_32, and inception_clean is clean; give those"),
        ("cifar10_clean_train_64.npz", clean, 6, "of images of 64x64"),
        ("mine.npz", clean, 6, "of no mode that the name tells"),
        ("cifar10_clean_train_32.npz", lite, 6, "efficientnet_lite0 is none of its modes"),
    ):
        with pytest.raises(UsageError, match=told) as raised:
            space_of(read_statistics(written(tmp_path, name, mu=MU, sigma=SIGMA)), extractor, dimensions, 32)
        assert "\n" not in str(raised.value)


def test_broken_files_are_refused(tmp_path):
    good = written(tmp_path, "good.npz", mu=MU, sigma=SIGMA)
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:300])
    (tmp_path / "page.npz").write_text("<html>404</html>")
    with zipfile.ZipFile(tmp_path / "strange.npz", "w") as archive:
        archive.writestr("mu.npy", b"no array")
    for name, told in (
        ("absent.npz", "there is no file"),
        ("cut.npz", "no .npz of statistics"),
        ("page.npz", "no .npz of statistics"),
        ("strange.npz", "no .npz of statistics"),
        (written(tmp_path, "kid.npz", feats=REAL), "holds features for KID, no statistics"),
        (written(tmp_path, "half.npz", mu=MU), "lacks sigma"),
        (written(tmp_path, "flat.npz", mu=MU, sigma=SIGMA[0]), r"has mu \[6\] and sigma \[6\]"),
        (written(tmp_path, "nan.npz", mu=MU * np.nan, sigma=SIGMA), "NaN"),
        (written(tmp_path, "skew.npz", mu=MU, sigma=SIGMA + np.arange(6.0)), "not symmetric"),
        (written(tmp_path, "object.npz", mu=np.array([{}], object), sigma=SIGMA), "no .npz of statistics"),
        (written(tmp_path, "complex.npz", mu=MU, sigma=SIGMA + 1j), r"no .npz of statistics \(TypeError\)"),
        (written(tmp_path, "text.npz", mu=MU.astype(str), sigma=SIGMA), r"no .npz of statistics \(TypeError\)"),
        (written(tmp_path, "empty.npz", mu=MU[:0], sigma=SIGMA[:0, :0]), r"has mu \[0\] and sigma \[0, 0\]"),
        (written(tmp_path, "scalar.npz", mu=MU[0], sigma=SIGMA[0, 0]), r"has mu \[\] and sigma \[\]"),
        (written(tmp_path, "minus.npz", mu=MU, sigma=-np.eye(6)), r"negative variances \(down to -1\)"),
    ):
        with pytest.raises(UsageError, match=told) as raised:
            read_statistics(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_file_with_a_changed_byte_is_refused_or_read_as_it_was(tmp_path):
    """Every byte of the headers of a small archive and some of its arrays, stored and compressed, and its beginning alone."""
    x = np.random.RandomState(1).randn(40, 4)
    told = {"mu": x.mean(axis=0), "sigma": np.cov(x, rowvar=False)}
    path, rng, refused = tmp_path / "f-32x32.npz", np.random.RandomState(0), 0
    for save in (np.savez, np.savez_compressed):
        save(path, **told)
        whole = path.read_bytes()
        changes = [(at, 1 << rng.randint(8)) for at in rng.choice(len(whole), 120, replace=False)]
        for at, bit in (*changes, *((cut, 0) for cut in rng.choice(len(whole), 20, replace=False))):
            bad = bytearray(whole)
            bad[at] ^= bit
            path.write_bytes(bad if bit else bad[:at])
            try:
                found = read_statistics(path)
            except UsageError:
                refused += 1
            else:
                assert np.array_equal(found.mean, told["mu"]), (at, bit)
                assert np.array_equal(found.cov, (told["sigma"] + told["sigma"].T) / 2), (at, bit)
    assert refused > 100


def test_few_images_leave_variances_of_rounding(tmp_path):
    """A covariance of fewer images than features in float32, whose vanishing variances are a little negative, is one."""
    x = np.random.RandomState(2).randn(5, 60)
    sigma = np.cov(x, rowvar=False).astype(np.float32)
    assert np.linalg.eigvalsh(sigma.astype(float))[0] < 0
    assert read_statistics(written(tmp_path, "few.npz", mu=x.mean(axis=0), sigma=sigma)).cov.shape == (60, 60)


def test_the_published_protocol_is_kept_or_there_is_no_number():
    one, three = (dataclasses.replace(metric_named(name), each=20) for name in ("fid_published", "fid_published_min3"))
    own = of_features(drawn(0, 60), REAL)
    for metric, evidence, told in (
        (one, own, "of 20 samples of the seeds from 0 with noise=edm, and there are 60 drawn nobody knows how"),
        (one, dataclasses.replace(own, drawn=Drawn(0, "edm")), "there are 60 of the seeds from 0 with noise=edm"),
        (three, dataclasses.replace(own, drawn=Drawn(7, "edm")), "from 7 with noise=edm; type suite.samples=60 seed=0 noise=edm"),
        (three, dataclasses.replace(own, drawn=Drawn(0, "philox")), "noise=philox"),
        (three, dataclasses.replace(own, drawn=Drawn(0, "edm", "class_conditional")), "write task: class_conditional_edm into the model's"),
    ):
        with pytest.raises(Unavailable, match=told):
            metric(evidence)
    found = three(dataclasses.replace(own, drawn=Drawn(0, "edm", "class_conditional_edm")))
    assert found.protocol["drawn"]["generators"] == "one for each image, on the CPU"
    assert found.protocol["drawn"]["labels"] == "class_conditional_edm"
    assert three(dataclasses.replace(own, drawn=Drawn(0, "edm"))).protocol["drawn"]["labels"] == "none"
    runs = [frechet_distance(Moments.of(drawn(0, 60)[i : i + 20]), Moments.of(REAL)) for i in (0, 20, 40)]
    assert_close(found.protocol["runs"], runs)
    assert_close(found.value, min(runs))
    assert (found.samples, found.std_error) == (60, None)


def test_influences_are_the_derivative_of_the_distance():
    x = drawn(3, 200)
    distance = of_features(x, REAL).reference.spaces["inception"].distance
    value, each = distance.influences(x)
    assert_close(value, distance(Moments.of(x)))
    for i in (0, 7, 100):
        # Twice as often in 201 as once in 200: by 1 / 201 of its influence, to first order.
        moved = distance(Moments.of(np.concatenate([x, x[i : i + 1]]))) - value
        assert abs(moved - each[i] / 201) < 0.05 * abs(each[i] / 201) + 2e-4
    assert abs(each.mean()) < 1e-12
    resampled = [distance(Moments.of(x[np.random.RandomState(s).randint(200, size=200)])) for s in range(200)]
    assert 0.7 < each.std() / 200**0.5 / np.std(resampled) < 1.4
