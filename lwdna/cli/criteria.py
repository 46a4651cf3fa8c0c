"""``lwdna criteria``."""

from __future__ import annotations

import inspect

from lwdna.cli.command import Answer, command


@command(examples=("lwdna criteria", "lwdna criteria --json"))
def criteria() -> Answer:
    """List what channels can be scored by: names for `lwdna shrink --criterion`.

    Options go to --criterion-arg; what needs no data is content without --images.
    """
    import lwdna
    from lwdna.cli import tables

    found = []
    for name in lwdna.criteria():
        criterion = lwdna.get_criterion(name)
        known = list(inspect.signature(criterion.function).parameters.values())[1:]
        said = (inspect.getdoc(criterion.function) or "").partition("\n")[0]
        taken = {p.name: p.default for p in known}
        found.append({"name": name, "data": criterion.data, "options": taken, "score": said})
    rows = [
        (c["name"], "yes" if c["data"] else "no", _options(c["options"]), c["score"]) for c in found
    ]
    headers = ("criterion", "needs data", "options", "score of a channel")
    return Answer({"criteria": found}, tables.table(rows, headers, texts=len(headers)))


def _options(taken: object) -> str:
    assert isinstance(taken, dict)
    return ", ".join(f"{name}={value!r}" for name, value in taken.items())
