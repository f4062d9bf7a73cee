"""Search spaces: plain data with choices in it, and the one way to fill them.

A space is any nesting of dicts and lists in which a dict with the key `?` is a choice:

    {"?": [64, 128, 256], "name": "block1.mlp.units1", "group": "block1", "default": 128}

* `?`: the options; any data, with further choices inside (these are asked only if their option is taken).
* `name`: how the choice is called in trials. The same name met twice is one choice: asked once, same answer everywhere.
  Left out, it is the path to the choice (a list item with an `id` is called by that id).
* `group`: what the greedy sampler resamples together; left out, the name up to its last dot.
* `default`: the option of the first trial (its label, where there are labels); left out, the first one.
* `labels`: what trials show for the options; left out, the option itself, its `op` or `kind`, or its JSON.
* `splice: true`: the choice is an item of a list and its options are lists whose items take its place.

An item of a list may stand under a condition:

    {"if": [...], "then": [...]}
    {"if": "block1", "then": [...]}

* `if`, `then`: the items under `then` take its place if the list under `if` comes out with anything in it; a name holds
  if an item with that `id` stands above. Else they are not there, and their choices are not asked.

A choice with one option is no choice: it is filled without asking. A space without choices is plain data.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import UserError

Label = str | int | float | bool | None
Params = dict[str, int]
"""Choice name → index of the option taken, in the order in which the choices were met."""


@dataclass(frozen=True)
class Choice:
    """One named question of a space. `default` is an index into `labels`."""

    name: str
    labels: tuple[Label, ...]
    default: int
    group: str


Chooser = Callable[[Choice], int]


def fill(space: Any, choose: Chooser) -> Any:
    """Plain data: `space` with every choice replaced by the option whose index `choose` returned.

    Each active choice is asked once, in reading order; a choice inside an option that was not taken, or under a
    condition that does not hold, is never asked.
    """
    return _Filling(choose).fill(space, "")


def fill_params(space: Any, params: Mapping[str, int]) -> Any:
    """`space` filled by `params`; a choice that `params` does not name takes its default."""
    return fill(space, lambda choice: params.get(choice.name, choice.default))


def defaults(space: Any) -> Params:
    """The active choices of the all-defaults filling."""
    return active(space, lambda choice: choice.default)


def active(space: Any, choose: Chooser) -> Params:
    """The choices that `choose` was asked for and its answers: the parameters of that filling."""
    params: Params = {}

    def ask(choice: Choice) -> int:
        params[choice.name] = choose(choice)
        return params[choice.name]

    fill(space, ask)
    return params


def pinned(space: Any, values: Mapping[str, Any]) -> Any:
    """`space` with the choices named in `values` made: the option of that label, else the value itself."""
    if isinstance(space, Mapping):
        if "?" in space and space.get("name") in values:
            value, labels = values[space["name"]], space.get("labels")
            made = space["?"][labels.index(value)] if labels else value
            # An option of a splice is a list of items: it stays a choice, of one.
            return {"?": [made], "splice": True} if space.get("splice") else pinned(made, values)
        return {key: pinned(value, values) for key, value in space.items()}
    return [pinned(item, values) for item in space] if isinstance(space, list | tuple) else space


def choices(space: Any) -> dict[str, Choice]:
    """Every choice of `space` by name, whichever option it lies in, in reading order.

    Raises UserError if one name stands for two different sets of options.
    """
    found: dict[str, Choice] = {}
    for choice, _ in _walk(space, ""):
        known = found.setdefault(choice.name, choice)
        if known.labels != choice.labels:
            raise UserError(
                f"choice '{choice.name}' stands for {list(known.labels)} and for {list(choice.labels)}: give two names"
            )
    return found


def size(space: Any) -> int:
    """How many fillings there are; an upper bound where one name is met in several places."""
    if isinstance(space, Mapping):
        if "?" in space:
            return sum(size(option) for option in space["?"])
        return math.prod(size(value) for value in space.values())
    if isinstance(space, list | tuple):
        return math.prod(size(item) for item in space)
    return 1


def digest(space: Any) -> str:
    """SHA-256 of the space as data: two spaces with one digest ask the same questions."""
    return hashlib.sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()


def choice(
    name: str,
    options: Sequence[Any],
    *,
    default: Any = None,
    group: str | None = None,
    labels: Sequence[Label] | None = None,
    splice: bool = False,
) -> dict[str, Any]:
    """A choice as data. A `default` that is not among the options (or labels) gives way to the first option."""
    written: dict[str, Any] = {"?": list(options), "name": name}
    if default in (labels or options):
        written["default"] = default
    if group is not None:
        written["group"] = group
    if labels is not None:
        written["labels"] = list(labels)
    if splice:
        written["splice"] = True
    return written


class _Filling:
    """One way through a space: what has been answered, and the ids of the items that are there by now."""

    def __init__(self, choose: Chooser) -> None:
        self._choose = choose
        self._taken: Params = {}
        self._there: set[str] = set()

    def fill(self, space: Any, path: str) -> Any:
        if isinstance(space, Mapping):
            if "?" in space:
                option, inner = self._take(space, path)
                return self.fill(option, inner)
            return {key: self.fill(value, _join(path, key)) for key, value in space.items()}
        if isinstance(space, list | tuple):
            return list(self._items(space, path))
        return space

    def _items(self, items: Sequence[Any], path: str) -> Iterator[Any]:
        for position, item in enumerate(items):
            inner = _join(path, _item_name(item, position))
            if isinstance(item, Mapping) and item.get("splice"):
                option, inner = self._take(item, inner)
                yield from self._items(option, inner)
            elif isinstance(item, Mapping) and "if" in item:
                if self._holds(item["if"], _join(inner, "if")):
                    yield from self._items(item["then"], _join(inner, "then"))
            else:
                filled = self.fill(item, inner)
                if isinstance(filled, Mapping) and isinstance(filled.get("id"), str):
                    self._there.add(filled["id"])
                yield filled

    def _holds(self, condition: Any, path: str) -> bool:
        return condition in self._there if isinstance(condition, str) else bool(self.fill(condition, path))

    def _take(self, written: Mapping[str, Any], path: str) -> tuple[Any, str]:
        """The option taken, and the path under which unnamed choices inside it are called."""
        options = written["?"]
        if len(options) == 1:
            return options[0], path
        choice = _read(written, path)
        if choice.name not in self._taken:
            self._taken[choice.name] = self._choose(choice)
        index = self._taken[choice.name]
        return options[index], _join(choice.name, str(choice.labels[index]))


def _walk(space: Any, path: str) -> Iterator[tuple[Choice, Any]]:
    if isinstance(space, Mapping):
        if "?" in space:
            yield from _walk_options(space, path)
        else:
            for key, value in space.items():
                yield from _walk(value, _join(path, key))
    elif isinstance(space, list | tuple):
        for position, item in enumerate(space):
            yield from _walk(item, _join(path, _item_name(item, position)))


def _walk_options(written: Mapping[str, Any], path: str) -> Iterator[tuple[Choice, Any]]:
    if len(written["?"]) == 1:
        yield from _walk(written["?"][0], path)
        return
    choice = _read(written, path)
    yield choice, written
    for label, option in zip(choice.labels, written["?"], strict=True):
        yield from _walk(option, _join(choice.name, str(label)))


def _read(written: Mapping[str, Any], path: str) -> Choice:
    name = written.get("name", path)
    options = written["?"]
    if not options:
        raise UserError(f"choice '{name}' has no options: list at least one under '?'")
    labels = tuple(written.get("labels", map(_label, options)))
    if len({(type(label), label) for label in labels}) != len(options):  # 1, 1.0 and True are three
        raise UserError(f"choice '{name}': options look alike in trials; write one distinct label each under 'labels'")
    default = list(written.get("labels", options)).index(written["default"]) if "default" in written else 0
    return Choice(name, labels, default, written.get("group", name.rpartition(".")[0] or name))


def _label(option: Any) -> Label:
    if isinstance(option, Mapping):
        named = option.get("op", option.get("kind"))
        return named if isinstance(named, str) else json.dumps(option, separators=(",", ":"))
    if isinstance(option, list | tuple):
        return json.dumps(option)
    return option  # type: ignore[no-any-return]


def _item_name(item: Any, position: int) -> str:
    named = item.get("id") if isinstance(item, Mapping) else None
    return named if isinstance(named, str) else str(position)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
