"""The documentation site names every page, and links between documents resolve, on GitHub and on the site."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from dearli_d2.cli import dearli
from dearli_d2.config.schema import sections
from dearli_d2.data.builtin import BUILT_IN
from dearli_d2.reproduction import find, papers
from dearli_d2.reproduction.settings import data_of, list_of, settings_of, weights_of
from tests.conftest import REPO

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SITE = yaml.safe_load((REPO / "mkdocs.yml").read_text(encoding="utf-8"))


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = _load(REPO / SITE["hooks"][0])
PAGES = sorted(REPO.glob("docs/**/*.md"))
DOCUMENTS = [REPO / name for name in hooks.PAGES] + PAGES


def pages_of(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", text), re.MULTILINE)
    found: set[str] = set()
    for heading in headings:
        slug = hooks.github_slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading))
        found.add(next(s for s in (slug, *(f"{slug}-{i}" for i in range(1, 99))) if s not in found))
    return found


def test_the_site_names_every_page_once():
    written = [page.relative_to(REPO / "docs").as_posix() for page in PAGES]
    assert sorted(pages_of(SITE["nav"])) == sorted([*written, *hooks.PAGES.values(), "keys.md"])


def test_the_api_reference_has_a_page_for_each_folder_of_the_package():
    pages = hooks.api_pages(REPO)
    folders = {p.name for p in (REPO / "dearli_d2").iterdir() if any(p.glob("**/*.py"))}
    assert set(pages) == {"dearli_d2", *folders}
    assert "dearli_d2.methods.base" in pages["methods"]


def test_the_table_of_keys_has_every_key():
    parts = re.split(r"^## (\S+)\n", hooks.keys_page(REPO), flags=re.MULTILINE)
    page = dict(zip(parts[1::2], parts[2::2], strict=True))
    missing = {
        section.SECTION
        for section in sections()
        for key in section.entries()
        if f"| `{key.name.rpartition('.')[2]}` |" not in page[section.SECTION or "General"]
    }
    assert missing <= {"MODEL.SENIOR.BACKBONE"}  # its text says that it has the keys of MODEL.BACKBONE
    assert "| `CLASSIFIER` | `'linear'` | `'linear'`, `'text'`, `'none'` |" in page["MODEL"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(REPO).as_posix())
def test_links_between_documents_resolve(document):
    broken = []
    for link in _LINK.findall(_FENCE.sub("", document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if d.name != "CHANGELOG.md"], ids=lambda p: p.relative_to(REPO).as_posix()
)
def test_files_that_documents_name_exist(document):
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md|sh|txt))`", document.read_text(encoding="utf-8"))
    top = {p.name for p in REPO.iterdir()}
    inside = {p.name for p in (REPO / "dearli_d2").iterdir()}
    files = [n for n in named if n.split("/")[0] in top | inside]
    places = (REPO, REPO / "dearli_d2", REPO / "configs")
    made_by_the_user = {"configs/custom/mine.yaml", "evaluation/config.yaml"}
    assert [n for n in files if n not in made_by_the_user and not any((p / n).exists() for p in places)] == []


def test_anchors_are_those_of_github():
    assert anchors("# A `b` (c), d: e\n## A b c d e\n## a] - *2026*\n```sh\n# no\n```\n## [x](y.md) é_1\n") == {
        "a-b-c-d-e",
        "a-b-c-d-e-1",
        "a---2026",
        "x-é_1",
    }


@pytest.mark.parametrize("page", ["label_loop", "report", "serve", "custom_data"])
def test_pictures_of_the_label_loop_are_small(page):
    text = (REPO / "docs" / f"{page}.md").read_text(encoding="utf-8")
    sizes = {
        name: (REPO / "docs" / "images" / name).stat().st_size for name in re.findall(r"\(images/([\w.-]+)\)", text)
    }
    assert {name: size for name, size in sizes.items() if size > 200_000} == {}
    assert sizes or page == "custom_data"


def test_links_lead_to_places_on_the_site():
    def relink(link: str, source: str = "docs/results/a.md", uri: str = "results/a.md") -> str:
        return hooks.relink(f"[text]({link})", source, uri)

    assert relink("../hvl.md#a") == "[text](../hvl.md#a)"
    assert relink("../../README.md") == "[text](../index.md)"
    assert relink("../../pyproject.toml") == "text"
    assert relink("docs/hvl.md", "README.md", "index.md") == "[text](hvl.md)"
    assert relink("../none.toml") == "[text](../none.toml)"  # mkdocs names it
    assert relink("https://a.b/c.md") == "[text](https://a.b/c.md)"
    assert hooks.relink("![a](docs/images/a.png)", "README.md", "index.md") == "![a](images/a.png)"


def test_nothing_of_the_site_comes_from_elsewhere():
    assert SITE["strict"] is True
    assert SITE["theme"]["font"] is False
    assert not [path for path in SITE.get("extra_css", []) + SITE.get("extra_javascript", []) if "//" in str(path)]


def test_the_page_of_commands_lists_every_command_once():
    table = (REPO / "docs/usage.md").read_text().partition("| command | does |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `dearli (\S+)` \| .+ \|$", table, re.MULTILINE)) == sorted(dearli.commands)


# ---------------------------------------------------------------------------------------------- the headline rows


HEADLINES = re.findall(
    r"^\| \| `(.+)` \|\n\|---\|---\|\n((?:\| .*\n)+)", (REPO / "docs/reproduce.md").read_text(), re.MULTILINE
)


def facts(name: str) -> dict[str, str]:
    """Facts of a row as the page has them, from the tables of the papers."""
    row = find(name)
    settings = settings_of(row.training.row.config, row.overrides())
    names = {view: BUILT_IN[view.partition("@")[0]]() for view in data_of(settings)}
    lists = [list_of(source, view.partition("@")[2].partition(":")[0], view) for view, source in names.items()]
    commands = dict.fromkeys(source.hint.removeprefix("run ") for source in names.values())
    commands |= {"dearli prepare partitions FOLDER": None} if any(lists) else {}
    of_stages = re.findall(r"{weights:(.+?)}", " ".join(stage.command for stage in row.stages))
    return {
        "expected": ", ".join(f"{m} {v:g}" for m, v in row.figures.items()) + f"; a run may differ by {row.spread:g}",
        "config": f"`configs/{row.training.row.config}`",
        "stages": ", ".join([*(stage.name for stage in row.stages), "training"]),
        "data": ", ".join(f"`{command}`" for command in commands),
        "weights": ", ".join(f"`{name}`" for name in dict.fromkeys([*of_stages, *weights_of(settings)])),
        "hardware of the paper": row.paper.hardware,
    }


@pytest.mark.parametrize(("name", "table"), HEADLINES, ids=[name for name, _ in HEADLINES])
def test_the_page_of_headline_rows_has_the_facts_of_the_tables(name, table):
    printed = dict(re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE))
    wanted = facts(name)
    assert {key: printed[key] for key in wanted} == wanted
    assert {"GPU memory", "GPU hours", "not run here"} <= printed.keys()


def test_each_paper_that_is_trained_has_a_headline_row():
    trained = {
        name for name, paper in papers().items() if any(not row.checkpoint for row in paper.rows.values() if row.config)
    }
    assert {name.partition("/")[0] for name, _ in HEADLINES} == trained - {"miniworld", "mask2former", "fc_clip"}
