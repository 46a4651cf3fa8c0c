"""A network for the tests of reports, and what every page of a report obeys."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: No dot, which module names cannot have, and no quotation mark, which torch.fx cannot print.
HOSTILE = "<script>alert('$x$ & $y$')<"
X = torch.zeros(2, 3, 12, 12)
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Net(nn.Module):
    """A residual network, one layer of which has a name that tries to be code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.body = nn.ModuleDict({HOSTILE: nn.Conv2d(16, 24, 3, padding=1)})
        self.back = nn.Conv2d(24, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.back(F.relu(self.body[HOSTILE](x)))
        return self.fc(x.mean((2, 3)))


class Page(HTMLParser):
    """Parses a page, and fails where an element is not closed, or closed by another's tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> Page:
    """The page, checked: well formed, no script, and nothing that would be fetched."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"https?:|//|@import|javascript:", text)
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))
    for name, value in page.attributes:
        assert not name.startswith("on") and name not in ("src", "action", "data")
        assert name != "href" or (value or "").startswith("#")
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="|url\()#([^")]*)', text)
    assert set(references) <= set(ids)
    return page
