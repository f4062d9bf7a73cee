"""What blind choices say of the options of one decision."""

from collections.abc import Sequence
from statistics import fmean

from trainer.engines.sampled import Choice
from trainer.engines.supernet import Scored
from trainer.figures import Alternative, Column


def column(
    title: str,
    options: Sequence[object],
    decision: tuple[str, int],
    scored: Sequence[tuple[Choice, Scored]],
    best: Choice,
) -> Column:
    """Each option with the mean loss of the choices that have it. `decision`: its name in a choice, and its place."""
    name, place = decision
    losses: list[list[float]] = [[] for _ in options]
    for choice, one in scored:
        losses[int(choice[name][place])].append(one.score)
    means = [fmean(found) if found else None for found in losses]
    taken = int(best[name][place])
    shown = enumerate(zip(options, means, strict=True))
    return Column(title, [Alternative(str(option), mean, number == taken) for number, (option, mean) in shown])
