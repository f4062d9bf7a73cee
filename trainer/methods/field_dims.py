"""Random search of embedding widths: each field's width is an ordinary choice, and every trial a training from scratch.

With one width for all it is FDE, the full dimension everywhere. Both are baselines of AutoDim's table (Zhao 2021).
"""

from trainer.methods.base import Data, backbone, with_dims
from trainer.methods.settings import FieldDimsSettings
from trainer.schema import DatasetSchema
from trainer.space import choice


def space(schema: DatasetSchema, settings: FieldDimsSettings) -> Data:
    dims, widest = sorted(settings.dims), max(settings.dims)
    choices = {name: choice(f"dim.{name}", dims, default=widest) for name in schema.names("categorical")}
    align = choice("field_dims.align", settings.align)
    return with_dims("field_dims", backbone(schema, settings), choices, widest, align)
