"""Hooks of mkdocs: pages whose source is not below `docs/`, the keys of configs, API pages, and links that leave `docs/`.

Markdown files link to each other by relative paths, as GitHub reads them. On the site the README is the home page, and a file
that is no page of the site (source code, a config) keeps its text and loses its link.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dearli_d2"
PAGES = {
    "README.md": "index.md",
    "datasets/README.md": "datasets.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINKS = {**PAGES, "dearli_d2/config/sections.py": "keys.md"}  # files that have a page
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def github_slug(heading: str, separator: str = "-") -> str:
    """The anchor that GitHub gives a heading; mkdocs' own rule merges neighbouring dashes."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", separator)


def on_config(config: Any) -> Any:
    """Headings have the same anchors on the site as on GitHub; the API part of the navigation lists the folders of the package."""
    config.mdx_configs["toc"]["slugify"] = github_slug
    for entry in config.nav:
        if "API" in entry:
            entry["API"] = [{name: f"api/{name}.md"} for name in api_pages(ROOT)]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of `PAGES`, the table of keys, and one API page for each folder of the package."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "keys.md", content=keys_page(ROOT)))
    for name, modules in api_pages(ROOT).items():
        text = f"# {name}\n" + "".join(
            f"\n::: {m}\n    options:\n      toc_label: {_short(m, name)}\n" for m in modules
        )
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrites the links of a page from places in the checkout to places on the site."""
    sources = {target: source for source, target in PAGES.items()}
    uri = page.file.src_uri
    return relink(markdown, sources.get(uri, f"docs/{uri}"), uri)


def relink(markdown: str, source: str, uri: str) -> str:
    """Links of the file `source` of the checkout, as the page `uri` of the site needs them."""

    def replace(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["path"]))
        if path not in LINKS and not path.startswith("docs/"):
            return match["text"] if (ROOT / path).exists() else match[0]
        target = LINKS.get(path, path.removeprefix("docs/"))
        link = posixpath.relpath(target, posixpath.dirname(uri) or ".")
        return f"{match['image']}[{match['text']}]({link}{match['anchor'] or ''})"

    return _LINK.sub(replace, markdown)


def api_pages(root: Path) -> dict[str, list[str]]:
    """The modules of each folder of the package by the folder's name; those of the top level under the package's own."""
    pages: dict[str, list[str]] = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__main__" or (parts[-1] == "__init__" and len(parts) > 2):
            continue
        if parts[-1] == "__init__":
            parts = parts[:-1]
        pages.setdefault(parts[1] if len(parts) > 2 else PACKAGE, []).append(".".join(parts))
    return pages


def _short(module: str, folder: str) -> str:
    """A module's name below its folder of the package."""
    return module.removeprefix(f"{PACKAGE}.").removeprefix(f"{folder}.")


def keys_page(root: Path) -> str:
    """All keys of a config: default, accepted values and explanation, as the dataclasses of the sections declare them."""
    shared = (root / PACKAGE / "config" / f"{area}_sections.py" for area in ("model", "data", "run"))
    sources = [*shared, *sorted((root / PACKAGE / "methods").glob("*/options.py"))]
    classes = [node for path in sources for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    text = "# All keys\n\nEvery key of a config. Keys that are not listed are detectron2's own.\n"
    for node in classes:
        section = next(
            ast.literal_eval(n.value) for n in node.body if isinstance(n, ast.AnnAssign) and _name(n) == "SECTION"
        )
        text += f"\n## {section or 'General'}\n\n{ast.get_docstring(node)}\n\n| key | default | accepts | meaning |\n|---|---|---|---|\n"
        text += "".join(_rows(node))
    return text


def _rows(node: ast.ClassDef) -> Iterator[str]:
    for entry in node.body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.value, ast.Call):
            default, rule, *explanation = entry.value.args
            meaning = ast.literal_eval(explanation[0]).replace("|", "\\|") if explanation else ""
            yield f"| `{_name(entry).upper()}` | `{ast.unparse(default)}` | {_accepted(rule)} | {meaning} |\n"


def _accepted(rule: ast.expr) -> str:
    """A constant such as POSITIVE_COUNT in words; the choices of `one_of`; what a text is like; any other rule as written."""
    if isinstance(rule, ast.Name):
        return rule.id.replace("_", " ").lower()
    if isinstance(rule, ast.Call) and isinstance(rule.func, ast.Name) and rule.func.id == "one_of":
        return ", ".join(f"`{ast.unparse(choice)}`" for choice in rule.args)
    if isinstance(rule, ast.Call):
        like = next((ast.literal_eval(keyword.value) for keyword in rule.keywords if keyword.arg == "like"), None)
        if like is not None:
            return like
    return f"`{ast.unparse(rule)}`".replace("|", "\\|")


def _name(entry: ast.AnnAssign) -> str:
    return entry.target.id if isinstance(entry.target, ast.Name) else ""
