"""Metrics and pictures of trained models. What a configuration may name under `evaluation:` stands here."""

from zoo.evaluation.probes import knn, linear_probe
from zoo.evaluation.views import multi_scale, ten_crop

__all__ = ["knn", "linear_probe", "multi_scale", "ten_crop"]
