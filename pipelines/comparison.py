"""`dalil compare`: a pipeline file as the comparison of many methods and the tuned zoo at one budget."""

import re
from pathlib import Path

from pipelines.spec import SearchPipeline, load
from trainer.errors import UserError

SUFFIX = "-compare"
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)([kMG]?)(s?)")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def comparison(file: Path, methods: str, budget: str, seeds: int, overrides: tuple[str, ...]) -> SearchPipeline:
    """The pipeline of `file` with these methods, every model of the zoo, and one budget for each of them.

    It has a name of its own, so that it neither takes up nor overwrites a run of the file, and registers nothing.

    Raises:
        SpecError: the file or one of the overrides is not valid.
        UserError: the budget is none.
    """
    name = load(file).metadata.name
    settings = (
        f"metadata.name={name}{SUFFIX}",
        f"search.methods=[{methods}]",
        "search.sampler=null",
        "search.trials=null",
        f"search.budget={_budget(budget)}",
        "train.baselines=[all]",
        f"train.seeds={seeds}",
        "evaluate.register=null",
    )
    return load(file, (*settings, *overrides))


def _budget(text: str) -> str:
    """`3600s` are seconds, `20000000` and `20M` rows to learn from."""
    match = _BUDGET.fullmatch(text)
    if match is None or (match[2] and match[3]):
        raise UserError(f"--budget {text}: write seconds, such as 3600s, or rows to learn from, such as 20M")
    amount = float(match[1]) * _UNITS[match[2]]
    return f"{{seconds: {amount}}}" if match[3] else f"{{samples: {round(amount)}}}"
