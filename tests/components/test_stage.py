"""The working file gives back the frames it got, whatever they are made of."""

from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from components.check import LABEL
from components.stage import Stage


def _frame(tokens: list[str]) -> pl.DataFrame:
    columns = {"seen": [[token] for token in tokens], LABEL: [0.0] * len(tokens)}
    return pl.DataFrame({"token": tokens, "hashed": [f"h{token}" for token in tokens], **columns})


def test_frames_come_back_one_for_one(tmp_path: Path) -> None:
    in_pieces = pl.concat([_frame(["a", ""]), _frame(["c"])], rechunk=False)
    frames = [_frame(["b", "a", "b"]), in_pieces, _frame(["d", "b"])]
    stage = Stage(tmp_path / "rows.arrow", ["token"])
    for frame in [*frames, frames[0].clear()]:
        stage.append(frame)
    stage.close()
    read = list(stage.frames())
    assert [frame.height for frame in read] == [3, 3, 2]  # splits are drawn frame by frame
    for frame, given in zip(read, frames, strict=True):
        assert_frame_equal(stage.texted(frame), given)
    # In which order is nobody's business: pieces of a frame are numbered side by side.
    assert sorted(stage.texts["token"].to_list()) == ["", "a", "b", "c", "d"]
    assert [frame.columns for frame in stage.frames([LABEL])] == [[LABEL]] * 3
