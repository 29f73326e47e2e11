"""Hooks of mkdocs: pages made of files outside docs/ and of the packages' rooms, and links that leave the site."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
#: Pages of the site that are files of the repository's root.
OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The API reference is a section of the navigation."""
    reference = [{"Public names": "api/index.md"}, *({room: f"api/{room}.md"} for room in rooms())]
    config.nav.insert(4, {"API": reference})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "api/index.md", content=public_names()))
    for room, modules in rooms().items():
        text = "\n\n".join([f"# {room}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"api/{room}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to their page of the site, or to the repository where they have none."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    pages = {Path(file.abs_src_path): file for file in files if file.abs_src_path and file.inclusion.is_included()}

    def link(match: re.Match[str]) -> str:
        path = (Path(source).parent / match[1]).resolve()
        target, anchor = pages.get(path), match[2] or ""
        if target is not None:
            up = "../" * page.file.src_uri.count("/")
            return f"{up}{target.src_uri}{anchor}"
        if not path.exists():
            return match[0]  # mkdocs reports it
        return f"{config.repo_url}/tree/main/{path.relative_to(ROOT)}{anchor}"

    parts = FENCE.split(markdown)
    return "".join(part if number % 2 else LINK.sub(link, part) for number, part in enumerate(parts))


def rooms() -> dict[str, list[str]]:
    """The packages and their folders, each with its modules that have a public name; private modules are left out."""
    made: dict[str, list[str]] = {}
    for base, package in ((ROOT / "python", "asyncthink"), (ROOT, "asyncthink_kernels")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            inside = parts[1:] if parts[-1] != "__init__" else parts[1:-1]
            if not inside or any(part.startswith("_") for part in inside) or not defines(path):
                continue
            room = ".".join(parts[: min(2, len(parts) - 1)])
            made.setdefault(room, []).append(".".join((package, *inside)))
    return dict(sorted(made.items()))


def defines(path: Path) -> list[str]:
    """Public classes and functions that a module defines."""
    definitions = (ast.ClassDef, ast.FunctionDef)
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return [node.name for node in nodes if isinstance(node, definitions) and not node.name.startswith("_")]


def public_names() -> str:
    """What ``from asyncthink import`` and ``from asyncthink_kernels import`` offer."""
    text = ["# Public names", "`from asyncthink import ...` and, beneath it, `from asyncthink_kernels import ...`."]
    for package, path in (("asyncthink", "python/asyncthink"), ("asyncthink_kernels", "asyncthink_kernels")):
        tree = ast.parse((ROOT / path / "__init__.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                names = [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
                text += [f"::: {package}.{name}" for name in names]
    return "\n\n".join(text)
