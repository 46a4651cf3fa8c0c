"""What makes the site of docs/ out of pages and docstrings that are written for other readers.

``mkdocs.yml`` names both: pages link to files of the repository, which the site therefore has, and
docstrings have the roles and examples that Python's own tools read.

Source: https://www.mkdocs.org/user-guide/configuration/#hooks (``on_files``);
https://mkdocstrings.github.io/griffe/guide/users/extending/ (extensions).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

_LINK = re.compile(r"\]\(([^)#:\s]+)")
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([\w.]+)`")
_EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)
_DIRECTIVE = re.compile(r" *# doctest: .*")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/ that pages link to, so that the links lead somewhere.

    Args:
        files: those of docs/ and of the theme; README.md and its like join the pages.
        config: tells where docs/ is.
    """
    pages = list(files.documentation_pages())
    for page in pages:  # it grows: README.md links to more
        for link in _LINK.findall(page.content_string):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page.src_uri), link))
            outside = target.startswith("../") and target not in files.src_uris
            if outside and (Path(config.docs_dir) / target).is_file():
                file = _of_repository(target, config)
                files.append(file)
                pages += [file] if file.is_documentation_page() else []
    return files


def _of_repository(target: str, config: MkDocsConfig) -> File:
    path = Path(config.docs_dir) / target
    content: Any = {"abs_src_path": str(path.resolve())}
    if path.suffix == ".md":  # its links to docs/ are links within the site
        content = {"content": path.read_text(encoding="utf-8").replace("](docs/", "](/")}
    file = File.generated(config, target, inclusion=InclusionLevel.INCLUDED, **content)
    name = f"repository/{target.removeprefix('../')}"
    file.dest_uri = f"{name.removesuffix('.md')}.html" if path.suffix == ".md" else name
    return file


class Docstrings(Extension):
    """Docstrings as Markdown: roles become links, examples code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every object of the package before its docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """A docstring with links in place of roles and with examples fenced.

    >>> as_markdown("See :func:`lwdna.load`.")
    'See <autoref optional identifier="lwdna.load"><code>lwdna.load</code></autoref>.'
    """
    linked = _ROLE.sub(_reference, docstring)
    return _EXAMPLE.sub(lambda m: f"```pycon\n{_DIRECTIVE.sub('', m[0])}\n```", linked)


def _reference(role: re.Match[str]) -> str:
    """A link, or code alone where the reference has no such name."""
    name = role[1]
    identifier = name if name.split(".")[0] in ("lwdna", "torch") else f"lwdna.{name}"
    return f'<autoref optional identifier="{identifier}"><code>{name}</code></autoref>'
