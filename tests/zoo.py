"""torchvision without its compiled operators: where they do not fit this torch, their schemas are enough to import it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

BOXES = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"qroi_align({BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({BOXES}) -> (Tensor, Tensor)",
    f"ps_roi_align({BOXES}, int sampling_ratio) -> (Tensor, Tensor)",
    f"ps_roi_pool({BOXES}) -> (Tensor, Tensor)",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, "
    "SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor",
    *(f"_{name}_backward(Tensor gradient) -> Tensor" for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")),
)
KEPT: list[torch.library.Library] = []  # an operator lives as long as the library that declared it


def need_torchvision() -> None:
    """torchvision, importable; or skip."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed (pip install 'secateur[zoo]')")
    try:
        import torchvision
    except RuntimeError:
        KEPT.append(torch.library.Library("torchvision", "DEF"))
        for schema in SCHEMAS:
            KEPT[0].define(schema)
        import torchvision  # noqa: F401
