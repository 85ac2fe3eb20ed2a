"""A method is a folder: without it the others still work, and nothing outside of dearli_d2/methods names one."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dearli_d2.config import get_config
from dearli_d2.methods import method_of, methods
from tests.conftest import MINI_OVERRIDES, REPO, SSL, copy_of_checkout

# Runs in the copy. Other packages are imported once; each deletion then has a process of its own, forked from this one.
DRIVER = """
import importlib, json, os, pkgutil, sys, traceback
from pathlib import Path

import detectron2.engine, detectron2.modeling, open_clip, pycocotools.mask, scipy.ndimage, scipy.optimize, timm, torch

sys.dont_write_bytecode = True
torch.set_num_threads(1)
checkout, overrides = Path.cwd(), json.loads(sys.argv[1])
sys.path.insert(0, str(checkout))


def check(gone):
    import dearli_d2

    for module in pkgutil.walk_packages(dearli_d2.__path__, "dearli_d2."):
        if not module.name.endswith(("__main__", "_triton")):
            importlib.import_module(module.name)
    from dearli_d2.cli import dearli
    from dearli_d2.config import get_config
    from dearli_d2.data.build import build_streams
    from dearli_d2.errors import ConfigError
    from dearli_d2.methods import method_of, methods
    from dearli_d2.modeling import build_model

    assert gone not in methods()
    trained, refused = set(), {}
    for file in sorted((checkout / "configs/miniworld").glob("[a-z]*.yaml")):
        try:
            cfg = get_config(file, overrides)
        except ConfigError as error:
            refused[file.stem] = str(error)
            continue
        method = type(method_of(cfg)).__module__.split(".")[-1]
        if method not in trained and not cfg.DATASETS.MASKS:
            model = build_model(cfg).train()
            batch = next(build_streams(cfg))
            batch.pop("unlabeled", None)  # a teacher would have to label it
            sum(model(batch).values()).backward()
            torch.optim.SGD(model.parameters(), 1e-4).step()
            trained.add(method)
    return {"trained": sorted(trained), "refused": refused, "commands": list(dearli.commands), "known": sorted(methods())}


for folder in sorted(path.parent for path in (checkout / "dearli_d2/methods").glob("*/__init__.py")):
    hidden = checkout / "deleted"
    folder.rename(hidden)
    if not os.fork():
        try:
            result = check(folder.name)
        except BaseException:
            result = {"failed": traceback.format_exc()}
        (checkout / f"{folder.name}.json").write_text(json.dumps(result))
        os._exit(0)
    os.wait()
    hidden.rename(folder)
"""


@pytest.fixture(scope="module")
def deletions(tmp_path_factory) -> dict[str, dict]:
    """What still works without each method."""
    copy = copy_of_checkout(tmp_path_factory.mktemp("deletion") / "checkout")
    overrides = [*MINI_OVERRIDES, *SSL, "DATALOADER.NUM_WORKERS", "0"]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(overrides)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": ""},
        check=True,
        timeout=600,
    )
    return {name: json.loads((copy / f"{name}.json").read_text()) for name in methods()}


@pytest.mark.parametrize("gone", methods())
def test_without_a_method_everything_imports_and_the_others_train(gone, deletions):
    result, others = deletions[gone], sorted(set(methods()) - {gone})
    assert "failed" not in result, result["failed"]
    assert result["known"] == others
    assert result["trained"] == others


@pytest.mark.parametrize("gone", methods())
def test_configs_of_a_deleted_method_and_no_others_are_refused(gone, deletions):
    files = sorted((REPO / "configs/miniworld").glob("[a-z]*.yaml"))
    own = {file.stem for file in files if method_of(get_config(file)) is methods()[gone]}
    refused = deletions[gone]["refused"]
    assert own
    assert set(refused) == own
    assert all("MODEL.META_ARCHITECTURE" in error or "there is no key MODEL." in error for error in refused.values())


def test_a_command_of_a_method_goes_with_it(deletions):
    assert "regions" not in deletions["split_matching"]["commands"]
    assert "regions" in deletions["hvl"]["commands"]


# ---------------------------------------------------------------------------------------------- names in the core

ARCHITECTURES = {method.architecture for method in methods().values()}
# the sections of the configuration that belong to methods
SECTIONS = {section.SECTION for method in methods().values() for section in method.options}
# a default must be one of the methods; and a model on which several methods stand is a part of the core
ALLOWED = {("config/model_sections.py", "MaskFormer"), ("modeling/per_pixel/dpt_segmenter.py", "DPTSegmenter")}


def core() -> Iterator[Path]:
    root = REPO / "dearli_d2"
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if inside.parts[0] != "methods" and str(inside) not in ("cli/prepare.py", "demo.py"):
            yield path


def names_of_methods(source: str) -> Iterator[tuple[int, str]]:
    """Lines and names of methods in code; what docstrings and comments say does not count."""
    tree = ast.parse(source)
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    keys = re.compile("|".join(rf"{re.escape(section)}\b" for section in SECTIONS))
    folders = re.compile(rf"\bmethods\.({'|'.join(methods())})\b")
    parts = {section.split(".")[1] for section in SECTIONS}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.ClassDef(name=name) | ast.FunctionDef(name=name) if name in ARCHITECTURES:
                yield node.lineno, name
            case ast.Attribute(attr=name) if name in ARCHITECTURES | parts:
                yield node.lineno, name
            case ast.Constant(value=str(text)) if id(node) not in texts and (
                text in ARCHITECTURES or keys.search(text)
            ):
                yield node.lineno, text
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names if folders.search(alias.name))
            case ast.ImportFrom(module=module, names=names):
                found = (f"{module}.{alias.name}" for alias in names)
                yield from ((node.lineno, name) for name in found if folders.search(name))


def test_the_core_names_no_method():
    found = [
        f"{path.relative_to(REPO)}:{line}: {name}"
        for path in core()
        for line, name in names_of_methods(path.read_text())
        if (str(path.relative_to(REPO / "dearli_d2")), name) not in ALLOWED
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from ..methods.hvl.model import HVL",
        "from ..methods.hvl import model",
        "from ..methods import hvl",
        "import dearli_d2.methods.segkc",
        "if cfg.MODEL.META_ARCHITECTURE == 'SplitMatching': pass",
        "cfg.MODEL.HVL.TEXTUAL_QUERIES",
        "raise ConfigError('set MODEL.SPLIT.REGIONS.CACHE')",
    ],
)
def test_a_name_in_the_core_would_be_found(source):
    assert list(names_of_methods(source))


def test_prose_may_name_a_method():
    assert list(names_of_methods('"""As in HVL."""\nx = 1  # MODEL.HVL\ny = "DEARLi, Tab. 8"')) == []
