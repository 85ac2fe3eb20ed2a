"""Hooks of mkdocs: pages whose source is not below `docs/`, API pages, and links that leave `docs/`.

Markdown files link to each other by relative paths, as GitHub reads them. On the site the README is the home page, and a file
that is no page of the site (source code, a config) keeps its text and loses its link.
"""

from __future__ import annotations

import posixpath
import re
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
    """Adds the pages of `PAGES` and one API page for each folder of the package."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for name, modules in api_pages(ROOT).items():
        text = f"# {name}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
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
        if path not in PAGES and not path.startswith("docs/"):
            return match["text"] if (ROOT / path).exists() else match[0]
        target = PAGES.get(path, path.removeprefix("docs/"))
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
