"""Configuration: a detectron2 `CfgNode` whose keys, defaults and rules stand in typed sections."""

from .build import add_dearli_config, all_keys, find_config, get_config

__all__ = ["add_dearli_config", "all_keys", "find_config", "get_config"]
