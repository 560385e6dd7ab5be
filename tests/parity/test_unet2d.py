"""Networks in the layout of diffusers: the same numbers as that library's own model, and weights that it reads."""

import pytest
import torch
from torch.testing import assert_close

from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.nets.unet2d import UNet2D
from support.components import given_weights

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: parity with its UNet2DModel was not checked")
SMALL = {"shape": (3, 16, 16), "classes": 4, "channels": (8, 8, 16), "blocks": 1, "attention": (4,), "heads": 8, "groups": 4}


def drawn(net):
    torch.manual_seed(0)
    return given_weights(net), torch.randn(3, 3, 16, 16), torch.tensor([-1.2, 0.1, 0.9]), torch.tensor([0, 3, 4])


@torch.inference_mode()
def test_the_library_reads_the_weights_and_computes_the_same(tmp_path):
    net, x, c_noise, label = drawn(UNet2D(**SMALL))
    net.unet.save_pretrained(tmp_path)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    expected = theirs(x, c_noise, class_labels=label).sample
    assert_close(net(x, c_noise, Cond(label=label)), expected)
    assert_close(net(x, c_noise), theirs(x, c_noise, class_labels=torch.full((3,), 4)).sample)  # the null label is the last one
    assert expected.std() > 0.1


@torch.inference_mode()
def test_features_are_the_deepest_map():
    net, x, c_noise, label = drawn(UNet2D(**SMALL))
    out, deep = net(x, c_noise, Cond(label=label), features=True)
    assert deep.shape == (3, 16, 4, 4)
    assert net.feature_size == 16
    assert_close(out, net(x, c_noise, Cond(label=label)))


@torch.inference_mode()
def test_it_starts_as_the_zero_function_and_without_classes_has_no_embedding():
    net = UNet2D(**{**SMALL, "classes": 0})
    assert net.unet.class_embedding is None
    assert not net(torch.randn(2, 3, 16, 16), torch.zeros(2)).any()


def test_sizes_that_no_network_has_are_one_line():
    for change, line in (
        ({"shape": (3, 15, 16)}, "halves 15 x 16 images 2 times"),
        ({"channels": ()}, "on one level or more"),
        ({"channels": (8, 12, 16)}, "not multiples of its 4 groups and 8 channels a head"),
        ({"blocks": 0}, "the number of blocks of a unet2d"),
        ({"attention": "4"}, "attention of a unet2d are integers"),
    ):
        with pytest.raises(UsageError, match=line) as raised:
            UNet2D(**{**SMALL, **change})
        assert "\n" not in str(raised.value)
