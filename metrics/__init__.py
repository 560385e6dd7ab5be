"""Metrics by name, in the order of the tables. Importing this needs NumPy only; networks are loaded by the metric that wants one."""

from metrics.classes import CLASS_ACCURACY, DIVERSITY_DIGITS
from metrics.copying import NN_TRAIN_SHARE
from metrics.endpoint import ENDPOINT_ERROR, FD_MOMENTS
from metrics.energy import ENERGY_DISTANCE
from metrics.frechet import FD_DIGITS, FID
from metrics.metric import Evidence, Measurement, Metric
from metrics.paired import LPIPS_TEACHER, PSNR_TEACHER
from metrics.pixels import quantise, to_uint8

_ON_IMAGES = (FD_DIGITS, CLASS_ACCURACY, DIVERSITY_DIGITS, NN_TRAIN_SHARE, PSNR_TEACHER, FID, LPIPS_TEACHER)
METRICS: dict[str, Metric] = {m.name: m for m in (*_ON_IMAGES, ENDPOINT_ERROR, FD_MOMENTS, ENERGY_DISTANCE)}

__all__ = ["METRICS", "Evidence", "Measurement", "Metric", "quantise", "to_uint8"]
