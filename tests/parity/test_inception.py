"""The FID network from each file that it is published in, on files of the published formats that hold random weights, and on real ones."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.errors import Unavailable, UsageError
from fewstep.nets.inception import PLACES, from_torchscript, inception_network, tensors_of
from fewstep.nets.readers.torch_pt import WeightsFile, first_of, tensors_digest
from metrics import to_uint8
from metrics.features import networks
from metrics.features.extractors import file_of, load_extractor
from metrics.features.networks import INCEPTION, PREPARATIONS
from support.evidence import images
from support.repository import ROOT


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """torch-fidelity's network, with weights that keep features alive."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    empty = tmp_path_factory.mktemp("empty") / "empty.pth"
    torch.save({}, empty)
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        made = network("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(empty))
        for m in made.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
                m.bias.normal_(0, 0.1)
            elif isinstance(m, nn.Conv2d):
                m.weight.normal_(0, (2 / m.weight[0].numel()) ** 0.5)
    return made


def publish(monkeypatch, folder, which: int, write) -> WeightsFile:
    """One of the published files alone, with the digest that it has here."""
    file = INCEPTION[which]
    write(folder / file.name)
    own = replace(file, sha256=hashlib.sha256((folder / file.name).read_bytes()).hexdigest())
    monkeypatch.setattr(networks, "INCEPTION", (*INCEPTION[:which], own, *INCEPTION[which + 1 :]))
    return own


class Layer(nn.Module):
    """A layer of the archives: no scale, no counter."""

    def __init__(self, weight, beta, mean, var):
        super().__init__()
        self.weight, self.beta, self.mean, self.var = (nn.Parameter(v, requires_grad=False) for v in (weight, beta, mean, var))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archive(state, root: str = "") -> nn.Module:
    """The tensors of a state dict as the archives name them, in modules in modules; with a root (`net`), and else with a classifier."""
    top = nn.Module()
    for place, ours in PLACES.items():
        at = top
        for part in (*([root] if root else []), "layers", *place.split("."))[:-1]:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        own = (state[f"{ours}.{name}"].clone() for name in ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"))
        at.add_module(place.rpartition(".")[2], Layer(*own))
    if not root:
        top.add_module("output", nn.Linear(2048, 1008))
    return top


@pytest.mark.parametrize(("which", "root"), [(0, ""), (1, ""), (2, ""), (3, "net")])
def test_every_file_gives_torch_fidelity_s_features(hub, monkeypatch, theirs, which, root):
    state = theirs.state_dict()
    if INCEPTION[which].scripted:
        own = publish(monkeypatch, hub, which, lambda path: torch.jit.script(archive(state, root)).save(str(path)))
    else:
        own = publish(monkeypatch, hub, which, lambda path: torch.save(state, path))
    before = torch.random.get_rng_state()
    extractor = load_extractor("inception")
    assert file_of(extractor) == f"{own.name} {own.sha256[:16]}"
    assert extractor.digest == tensors_digest(tensors_of(state))  # whichever of the files it is
    x = images(2, 1 + 2 * (which % 2), 32)
    features, logits = extractor(x)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (features.shape, features.dtype, logits) == ((2, 2048), np.float32, None)
    expected = theirs(torch.from_numpy(to_uint8(x)).repeat(1, 3 // x.shape[1], 1, 1))[0]
    assert expected.std() > 0
    # 94 convolutions with their normalisations folded in, and sums in another order: 2e-6 of the largest feature, measured.
    assert_close(torch.from_numpy(features), expected, rtol=0, atol=1e-5 * expected.max().item())


def test_the_first_file_that_is_here_is_read(hub, monkeypatch, theirs):
    with pytest.raises(
        Unavailable, match=r"^weights-inception-2015-12-05-6726825d\.pth \(or one of pt_inception.*default_1\.pt\) is not in"
    ) as told:
        load_extractor("inception")
    assert "\n" not in str(told.value)
    publish(monkeypatch, hub, 1, lambda path: torch.save(theirs.state_dict(), path))
    assert first_of(networks.INCEPTION).name == INCEPTION[1].name
    (hub / INCEPTION[0].name).write_bytes(b"<html>not found</html>")
    with pytest.raises(UsageError, match=r"has SHA-256 [0-9a-f]{16}\.\.\., expected 6726825d0af5f729\.\.\.; delete it and get it again"):
        load_extractor("inception")(images(1))


def test_a_network_of_another_shape_is_refused_in_one_line(theirs):
    state = theirs.state_dict()
    lacking = {k: v for k, v in state.items() if k != "Mixed_7c.branch_pool.bn.bias"}
    scripted = {f"layers.{n}": v for n, v in archive(state).get_submodule("layers").state_dict().items()}
    for wrong, told in (
        ({**state, "fc.weight": torch.zeros(10, 2048)}, r"size mismatch for fc\.weight: \[10, 2048\] where \[1008, 2048\] belongs"),
        ({**state, "Mixed_5b.branch1x1.conv.weight": torch.zeros(8, 192, 1, 1)}, "size mismatch for Mixed_5b"),
        (lacking, r"Missing key\(s\) in state_dict"),
        ({"w": torch.zeros(1)}, "holds no 'layers'"),
        ({**scripted, "layers.mixed_11.conv.weight": torch.zeros(1)}, "layers.mixed_11.conv.weight is none"),
        ({k: v for k, v in scripted.items() if k != "layers.conv.weight"}, r"Missing key\(s\)"),
    ):
        with pytest.raises(UsageError, match=told) as raised:
            inception_network(wrong)
        assert "\n" not in str(raised.value)
    assert set(from_torchscript(scripted)) | {k for k in state if k.endswith("tracked") or k.startswith("fc.")} == set(state)


REAL = """
import sys, warnings
import torch
warnings.simplefilter("ignore")
from fewstep.nets.inception import inception_network
from metrics.features.networks import INCEPTION, PREPARATIONS
file = next(f for f in INCEPTION if f.name == sys.argv[1])
state, digest = file.load()
assert digest == file.sha256
theirs = torch.jit.load(file.path()).eval()
assert set(theirs.state_dict()) == set(state) and all(torch.equal(v, state[k]) for k, v in theirs.state_dict().items())
layers = theirs.net if hasattr(theirs, "net") else theirs.layers
torch.manual_seed(0)
x = PREPARATIONS["inception"](torch.randint(256, (8, 3, 32, 32)).float())
with torch.inference_mode():
    ours, expected = inception_network(state)(x), layers(x).flatten(1)
assert expected.std() > 0
print(float((ours - expected).abs().max() / expected.max()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("file", [f for f in INCEPTION if f.scripted], ids=lambda f: f.name)
def test_an_archive_s_own_code_gives_the_same_features(file):
    """It is run in a process of its own, and only where its digest is the published one."""
    if file.found() is None:
        pytest.skip(f"{file.name} is not here: that its features are those of torch.jit.load was not checked")
    done = subprocess.run([sys.executable, "-c", REAL, file.name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5  # 2e-6 measured: float32 sums in another order


def test_resizing_is_that_of_each_package(theirs):
    """32 -> 299 and 512 -> 299 levels, as torch-fidelity's TensorFlow 1 and clean-fid's two resizers make them."""
    tensorflow = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    resizer = pytest.importorskip("cleanfid.resize").build_resizer
    for side in (32, 64, 512):
        levels = np.random.RandomState(side).randint(0, 256, (2, 3, side, side)).astype(np.uint8)
        x = torch.from_numpy(levels).float()
        expected = {"inception": tensorflow(x, size=(299, 299), align_corners=False)}
        for name, mode in (("inception_clean", "clean"), ("inception_legacy_pytorch", "legacy_pytorch")):
            resized = np.stack([resizer(mode)(image.transpose(1, 2, 0)) for image in levels])
            expected[name] = torch.from_numpy(resized).permute(0, 3, 1, 2)
        for name, wanted in expected.items():
            how = PREPARATIONS[name]
            assert_close(how(x) * how.unit + how.zero, wanted, rtol=0, atol=1e-3)  # of a level: float32, in another order


def test_efficientnet_reads_its_published_names():
    from fewstep.nets.efficientnet import CLASSES, FEATURES, EfficientNetLite0, efficientnet_lite0

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = EfficientNetLite0()
        for m in plain.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
    state = plain.state_dict()
    assert len(state) == 296
    assert sum(p.numel() for p in plain.parameters()) == 4_652_008
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        features = efficientnet_lite0(state)(x)
        assert_close(features, plain.eval()(x), rtol=1e-4, atol=1e-5)  # normalisations folded in
        assert (features.shape, plain.classes(features).shape) == ((2, FEATURES), (2, CLASSES))
    with pytest.raises(UsageError, match=r"Missing key\(s\)") as raised:
        efficientnet_lite0({k: v for k, v in state.items() if k != "_fc.bias"})
    assert "\n" not in str(raised.value)
