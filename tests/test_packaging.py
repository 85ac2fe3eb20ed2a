"""What an installation holds, which versions it admits, and what is said where detectron2 is missing."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import dearli_d2
from dearli_d2.config import find_config
from dearli_d2.engine.trackers import _PACKAGES
from dearli_d2.errors import ConfigError
from dearli_d2.files import beside_package
from tests.conftest import REPO, copy_of_checkout

CONFIG = Path("miniworld") / "m2f.yaml"
# detectron2 has an installation of its own, triton comes with torch, and whatever needs the others says how to install them
OWN_OR_OPTIONAL = {
    "fsspec",
    "dearli_d2",
    "detectron2",
    "onnx",
    "onnxruntime",
    "ray",
    "triton",
    "transformers",
    "panopticapi",
    "pillow_heif",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built offline."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_of_checkout(folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-index", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "Warning" not in built.stdout + built.stderr  # newer releases of pip show setuptools' warnings to every user
    return next(folder.glob("*.whl"))


def requirements(lines: list[str]) -> set[str]:
    """In one form, without comments."""
    return {str(Requirement(line)) for line in lines if line.strip() and not line.startswith("#")}


def test_wheel_brings_the_dependencies_of_the_one_list(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    expected = requirements((REPO / "requirements.txt").read_text().splitlines())
    assert len(expected) > 20
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert requirements(needed) == expected
    assert set(_PACKAGES.values()) <= set(metadata.get_all("Provides-Extra"))  # as the error for a missing one says


def test_every_imported_package_is_in_the_list():
    """Those that one command alone needs say so where they are missing."""
    listed = {
        canonicalize_name(Requirement(line).name)
        for line in (REPO / "requirements.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    distributions = packages_distributions()
    missing = {}
    for path in [*(REPO / "dearli_d2").rglob("*.py"), *(REPO / "datasets").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - OWN_OR_OPTIONAL:
                if not {canonicalize_name(d) for d in distributions.get(top, [top])} & listed:
                    missing[top] = path.name
    assert not missing


def test_wheel_holds_every_module_config_and_script(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    expected = {p.relative_to(REPO).as_posix() for p in (REPO / "dearli_d2").rglob("*.py")}
    expected |= {p.relative_to(REPO).as_posix() for p in (REPO / "dearli_d2" / "assets").rglob("*.*")}
    expected.add("dearli_d2/py.typed")
    for folder, pattern in (("configs", "*.yaml"), ("datasets", "*.py"), ("scripts", "*.sh")):
        expected |= {f"dearli_d2/{p.relative_to(REPO).as_posix()}" for p in (REPO / folder).rglob(pattern)}
    assert len(expected) > 200
    assert not expected - inside


@pytest.fixture
def installed(wheel, tmp_path):
    """installed(*arguments): Python with the wheel in a fresh target, from an empty working directory."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    environment = {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path / "empty",
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_installed_package_finds_its_configs_far_from_a_checkout(installed, tmp_path):
    """With and without the leading folder."""
    code = (
        "from dearli_d2.config import get_config\n"
        "import dearli_d2\n"
        f"for path in ('{CONFIG.as_posix()}', 'configs/{CONFIG.as_posix()}'):\n"
        "    print(dearli_d2.__file__, get_config(path).OUTPUT_DIR)\n"
    )
    result = installed("-c", code)
    assert result.stdout.splitlines() == [f"{tmp_path / 'site' / 'dearli_d2' / '__init__.py'} output/miniworld/m2f"] * 2
    assert not result.stderr  # no warning of other packages either


def test_installed_package_trains_and_prepares_without_a_checkout(installed):
    """`python -m dearli_d2` is the script `dearli`, which a plain copy of the wheel's files lacks."""
    result = installed("-m", "dearli_d2", "eval", "--config-file", "configs/miniworld/m2f.yaml")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "evaluation needs weights: --weights FILE" in result.stderr
    result = installed("-m", "dearli_d2", "prepare", "ade20k")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "objectInfo150.txt; download" in result.stderr


def test_a_config_is_found_as_it_is_first_then_below_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = beside_package("configs") / CONFIG
    assert own == REPO / "configs" / CONFIG
    assert find_config(CONFIG) == find_config(Path("configs") / CONFIG) == own
    (tmp_path / "miniworld").mkdir()
    (tmp_path / CONFIG).write_text("VERSION: 2\n")
    assert find_config(CONFIG) == CONFIG
    with pytest.raises(ConfigError, match=r"no config file none\.yaml, neither here nor in .*configs"):
        find_config("none.yaml")


@pytest.mark.parametrize("door", [["-m", "dearli_d2"], ["dearli"]], ids=" ".join)
def test_missing_detectron2_is_one_line_that_names_the_command(tmp_path, door):
    """A Python without any package, but with ours. The script `dearli` is as pip writes it."""
    (tmp_path / "dearli_d2").symlink_to(REPO / "dearli_d2")
    (tmp_path / "scripts").symlink_to(REPO / "scripts")
    (tmp_path / "dearli").write_text("import sys\nfrom dearli_d2.cli import main\nsys.exit(main())\n")
    result = subprocess.run(
        [sys.executable, "-S", *door, "predict", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    script, python = re.search(r"dearli_d2 needs detectron2, .*: bash (\S+) ([^\s)]+)", result.stderr).groups()
    assert Path(script).samefile(REPO / "scripts" / "install_detectron2.sh")
    assert python == sys.executable


def read_requirements(name: str) -> list[Requirement]:
    """Of a file at the top of the checkout; those of files that it includes are not among them."""
    lines = (line.split("#")[0].strip() for line in (REPO / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def everything() -> list[Requirement]:
    return read_requirements("requirements.txt") + read_requirements("requirements-dev.txt")


def test_oldest_constraints_are_the_lower_bounds():
    bounds = set()
    for requirement in everything():
        lowest = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
        assert len(lowest) == 1, f"{requirement} needs one lower bound"
        bounds.add((requirement.name, f"=={lowest[0]}", str(requirement.marker)))
    pinned = {(r.name, str(r.specifier), str(r.marker)) for r in read_requirements("constraints/oldest.txt")}
    assert bounds == pinned


def test_newest_constraints_name_every_requirement_within_its_bounds():
    pinned = {canonicalize_name(r.name): r for r in read_requirements("constraints/newest.txt")}
    for requirement in everything():
        if requirement.marker and not requirement.marker.evaluate({"python_version": "3.13"}):
            continue
        pin = pinned.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is missing"
        (version,) = (s.version for s in pin.specifier)
        assert requirement.specifier.contains(version), f"{requirement}: {version}"


def test_requirements_admit_every_python_that_is_said_to_work():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    classifiers = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r"Python :: 3\.\d", c)}
    admitted = SpecifierSet(project["requires-python"])
    assert classifiers == {f"3.{minor}" for minor in range(30) if admitted.contains(f"3.{minor}.0")}


def test_newest_version_of_the_changelog_is_the_package_version():
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", (REPO / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == dearli_d2.__version__
    assert versions == sorted(versions, key=Version, reverse=True)
