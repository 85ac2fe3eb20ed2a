"""The sections of the configuration that several methods share: key, default, rule and explanation stand here once."""

from __future__ import annotations

from .data_sections import CustomData, DataLoading, Datasets, Input
from .model_sections import DPT, Backbone, Ensemble, MaskFormerOptions, Model, PixelDecoder, TextOptions
from .options import Options
from .run_sections import General, GradientClipping, Log, MixedPrecision, Ranks, SemiSupervised, Solver, Test

SECTIONS: tuple[type[Options], ...] = (
    General,
    Model,
    Backbone,
    PixelDecoder,
    MaskFormerOptions,
    TextOptions,
    Ensemble,
    DPT,
    Datasets,
    CustomData,
    SemiSupervised,
    Input,
    DataLoading,
    Solver,
    GradientClipping,
    MixedPrecision,
    Test,
    Log,
    Ranks,
)
