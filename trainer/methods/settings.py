"""Settings of the search methods, as written in a pipeline file; light to import, for the file's model embeds them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Interactor = Literal[
    "InnerProduct", "MLP", "FM", "CrossNet", "SelfAttention", "Elementwise", "Concatenate", "RandomSelect"
]
Mapper = Literal["auto", "latent", "sparse"]
ElementwiseKind = Literal["sum", "average", "multiply", "max", "min"]
Dropout = float


class AutoRecSettings(BaseModel):
    """AutoRec's space: stacked HyperInteractions over mappers. A list with several values is searched, with one fixed.

    The value lists are the published ones. Their first trial takes the published default where the list still has it,
    else the first value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mapper: Mapper = Field(
        default="auto",
        description="latent: each categorical field is an input of its own; sparse: all of them are one input; "
        "auto: latent for ratings, sparse for clicks",
    )
    towers: dict[str, list[str]] = Field(
        default={},
        description="latent: categorical fields added up to one input, such as {user: [user, age], item: [item]}; "
        "fields of no tower stay inputs of their own",
    )
    latent_dims: list[PositiveInt] = Field(
        default=[8, 16, 32, 64, 128], min_length=1, description="widths of LatentFactorMapper's tables"
    )
    sparse_dims: list[PositiveInt] = Field(
        default=[8, 16], min_length=1, description="widths of SparseFeatureMapper's tables"
    )
    dense_dims: list[PositiveInt] = Field(
        default=[8, 16], min_length=1, description="widths of DenseFeatureMapper's vectors"
    )
    tables: list[Literal["shared", "separate"]] = Field(
        default=["shared"],
        min_length=1,
        description="separate: products (InnerProduct, Elementwise, FM) have categorical tables of their own",
    )
    blocks: list[PositiveInt] = Field(
        default=[1, 2],
        min_length=1,
        description="HyperInteractions on top of each other; each sees the mappers and all blocks below it",
    )
    parallel: list[PositiveInt] = Field(
        default=[1, 2, 3, 4, 5, 6], min_length=1, description="interactors side by side in a HyperInteraction"
    )
    interactors: list[Interactor] = Field(
        default=[
            "InnerProduct",
            "MLP",
            "FM",
            "CrossNet",
            "SelfAttention",
            "Elementwise",
            "Concatenate",
            "RandomSelect",
        ],
        min_length=1,
        description="kinds of interactors tried; the first trial takes them side by side in this order",
    )
    elementwise: list[ElementwiseKind] = Field(
        default=["sum", "average", "multiply", "max", "min"], min_length=1, description="Elementwise: the operation"
    )
    mlp_layers: list[PositiveInt] = Field(default=[1, 2, 3], min_length=1, description="MLP: number of layers")
    mlp_units: list[PositiveInt] = Field(
        default=[16, 32, 64, 128, 256, 512, 1024], min_length=1, description="MLP: width of each layer"
    )
    mlp_batch_norm: list[bool] = Field(
        default=[False, True], min_length=1, description="MLP: batch normalisation after each linear map"
    )
    mlp_dropout: list[Dropout] = Field(
        default=[0.0, 0.25, 0.5], min_length=1, description="MLP: share of units dropped in training"
    )
    fm_dims: list[PositiveInt] = Field(default=[4, 8, 16], min_length=1, description="FM: width of the factors")
    cross_layers: list[PositiveInt] = Field(default=[1, 2, 3, 4], min_length=1, description="CrossNet: layers")
    cross_kind: list[Literal["vector", "matrix"]] = Field(
        default=["vector"], min_length=1, description="CrossNet: weights of a layer; vector: DCN, matrix: DCNv2"
    )
    attention_widths: list[PositiveInt] = Field(
        default=[4, 8, 16], min_length=1, description="SelfAttention: width of the fields it attends to"
    )
    attention_dims: list[PositiveInt] = Field(
        default=[4, 8, 16], min_length=1, description="SelfAttention: width of a head"
    )
    attention_heads: list[PositiveInt] = Field(default=[1, 2, 3, 4], min_length=1, description="SelfAttention: heads")
    attention_residual: list[bool] = Field(
        default=[True, False], min_length=1, description="SelfAttention: add the field itself"
    )
    first_order: list[bool] = Field(
        default=[False], min_length=1, description="give the optimizer one weight per category and numeric field too"
    )
    head: list[Literal["linear", "sum"]] = Field(
        default=["linear"],
        min_length=1,
        description="optimizer: one linear map of everything, or a sum of logits (a wider input is mapped to one)",
    )
    head_inputs: list[Literal["last", "all"]] = Field(
        default=["last"], min_length=1, description="optimizer: reads the last block, or every block"
    )
