"""The public workflow and pre-commit agree with the project's own files."""

from __future__ import annotations

import re

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.conftest import REPO

WORKFLOW = yaml.safe_load((REPO / ".github" / "workflows" / "ci.yml").read_text())


def test_pre_commit_has_a_ruff_that_the_requirements_admit():
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"]
    (version,) = (hook["rev"].lstrip("v") for hook in hooks if hook["repo"].endswith("/ruff-pre-commit"))
    lines = (REPO / "requirements-dev.txt").read_text().splitlines()
    (ruff,) = (Requirement(line) for line in lines if line.startswith("ruff"))
    assert ruff.specifier.contains(version)


def test_public_workflow_types_targets_of_the_makefile():
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    typed = {step["run"].split()[1] for step in steps if step.get("run", "").startswith("make ")}
    targets = set(re.findall(r"^([a-z][a-z-]*):", (REPO / "Makefile").read_text(), re.M))
    assert {"lint", "test", "docs"} <= typed <= targets


def test_public_workflow_tests_the_lowest_and_the_highest_python_with_both_constraints():
    rows = WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["include"]
    (admitted,) = re.findall(r'^requires-python = "(.+)"$', (REPO / "pyproject.toml").read_text(), re.M)
    minors = [minor for minor in range(30) if SpecifierSet(admitted).contains(f"3.{minor}.0")]
    tested = {row["python"]: row["constraints"] for row in rows}
    assert tested[f"3.{min(minors)}"] == "constraints/oldest.txt"
    assert tested[f"3.{max(minors)}"] == "constraints/newest.txt"
    assert all((REPO / path).is_file() for path in tested.values() if path)
