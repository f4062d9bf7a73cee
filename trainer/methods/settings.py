"""Settings of the search methods, as written in a pipeline file; light to import, for the file's model embeds them."""

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from trainer.schema import Task

Interactor = Literal[
    "InnerProduct", "MLP", "FM", "CrossNet", "SelfAttention", "Elementwise", "Concatenate", "RandomSelect"
]
Mapper = Literal["auto", "latent", "sparse"]
ElementwiseKind = Literal["sum", "average", "multiply", "max", "min"]
Dropout = float
BlockActivation = Literal["identity", "relu", "gelu", "silu", "tanh"]
NumberEncoder = Literal["scale", "bins", "equal_width", "equal_frequency", "logarithm", "tree"]


_VALUES: tuple[Task, ...] = ("ctr", "rating")
TASKS: dict[str, tuple[Task, ...]] = {
    "autorec": _VALUES,
    "autofis": _VALUES,
    "autodim": _VALUES,
    "autodis": _VALUES,
    "autogroup": _VALUES,
    "nis": _VALUES,
    "esapn": _VALUES,
    "ameir": (*_VALUES, "next_item"),
    "ihas": _VALUES,
    "autoctr": _VALUES,
    "field_dims": _VALUES,
    "mde": _VALUES,
    "dpq": _VALUES,
    "mgqe": _VALUES,
    "autoemb": _VALUES,
    "random": _VALUES,
}
"""What the models that each method finds can predict."""


def methods_for(task: Task) -> list[str]:
    """The methods whose models predict it."""
    return [name for name, tasks in TASKS.items() if task in tasks]


SECTIONS = {"random": "autorec"}
"""Where the settings of a method stand that has no section of its own name."""
TRAINED = ["autorec", "autoctr", "field_dims", "mde", "random"]
"""Methods whose trial is one training."""


class BackboneSettings(BaseModel):
    """What a method needs that opens a hand-made model. Its own choices (widths, layers) are searched as well."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    OPENS: ClassVar[frozenset[str]] = frozenset()
    """Parts of a model (`zoo.parts`) that the method can open."""
    REFUSES: ClassVar[frozenset[str]] = frozenset()
    """Parts that it cannot leave as they are."""

    backbone: str = Field(default="deepfm", description="model of the zoo that is opened")
    choices: dict[str, Any] = Field(
        default={},
        description="values of the backbone's own choices, such as {mlp.units: [128, 128]}",
    )

    def opens(self, parts: Collection[str]) -> bool:
        """Whether a model with these parts can be a backbone."""
        return bool(self.OPENS & set(parts)) and not self.REFUSES & set(parts)


class AutoFISSettings(BackboneSettings):
    """AutoFIS: which pairs of fields interact. Lists with several values are searched, a trial for each."""

    OPENS = frozenset({"fm", "dot", "pairs"})

    select: Literal["grda", "top", "random"] = Field(
        default="grda",
        description="grda: gates that end at exactly 0 are closed; top: the greatest are kept; random: drawn blindly",
    )
    triples: list[bool] = Field(default=[False], min_length=1, description="gate triples of fields too")
    threshold: list[Annotated[float, Field(ge=0)]] = Field(
        default=[1.2, 1.6, 2.0],
        min_length=1,
        description="grda: the penalty at the end, in units of the gates' start; 0 closes none",
    )
    mu: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.8], min_length=1, description="grda: the penalty grows with this power of the steps"
    )
    gate_learning_rate: float = Field(default=1.0, gt=0, description="grda: rate of the gates")
    keep: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.3], min_length=1, description="top, random: share of gates kept"
    )
    warm_up: float = Field(
        default=0.5, ge=0, lt=1, description="share of the search, at its beginning, in which gates stay as they start"
    )
    epochs: int = Field(default=8, ge=1, description="passes over the training rows")

    def opens(self, parts: Collection[str]) -> bool:
        """Triples have tables of their own, which the output of layers on raw numbers (dlrm) cannot have."""
        return super().opens(parts) and not (any(self.triples) and "raw" in parts)


class WidthSettings(BackboneSettings):
    """What methods need that give every categorical field's embedding a width of its own."""

    OPENS = frozenset({"embedding.dim"})
    REFUSES = frozenset({"share", "pairs_table"})

    align: list[Literal["lift", "pad"]] = Field(
        default=["lift"],
        min_length=1,
        description="how a narrow table's vectors come to the backbone's width: by a linear map, or by zeros",
    )


class DimsSettings(WidthSettings):
    """Widths as a list."""

    dims: list[PositiveInt] = Field(
        default=[2, 4, 8, 16], min_length=1, description="widths to choose from; the widest is the backbone's"
    )


class MixtureSettings(BaseModel):
    """How a supernet of mixtures is searched: weights on training rows, gates after a warm-up on validation rows.

    `every` and the gates' rate are ours. AutoDim's, 10 and 1e-3, are for tens of millions of rows; on 800,000 even 2
    and 0.02 left its gates near equal weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(default=1, ge=1, description="steps of the weights for each step of the gates")
    warm_up: float = Field(
        default=0.3, ge=0, lt=1, description="share of the search, at its beginning, with equal weights for all"
    )
    gate_learning_rate: float = Field(default=0.1, gt=0, description="Adam's rate for the gates")
    table_l2: NonNegativeFloat | None = Field(
        default=None,
        description="the supernet's own table_l2, for normalised candidates bear more; none: the training's",
    )
    epochs: int = Field(default=4, ge=1, description="passes over the training rows")


class AutoDimSettings(DimsSettings, MixtureSettings):
    """AutoDim: a width for every categorical field's embedding."""

    budget: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[1.0],
        min_length=1,
        description="greatest share of the full tables that may be kept; 1: the gates alone decide",
    )
    select: Literal["gates", "random"] = Field(
        default="gates", description="gates: the likeliest widths; random: drawn blindly, as large as the budget lets"
    )
    update: Literal["validation", "training"] = Field(
        default="validation",
        description="rows that decide; training: the weights' own batches (AutoDim-s, which ends wider)",
    )


class PolicySettings(BaseModel):
    """How a supernet is searched by sampling: weights on training rows, after a warm-up a policy on validation rows.

    All values are ours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(default=1, ge=1, description="steps of the weights for each step of the policy")
    draws: int = Field(default=4, ge=1, description="choices scored in a step of the policy, all on the same rows")
    warm_up: float = Field(
        default=0.4, ge=0, lt=1, description="share of the search, at its beginning, in which all choices are trained"
    )
    policy_learning_rate: float = Field(default=0.05, ge=0, description="Adam's rate for the policy")
    entropy: float = Field(
        default=0.01, ge=0, description="weight of the entropy that keeps a policy from deciding early"
    )
    table_l2: NonNegativeFloat | None = Field(
        default=None, description="the supernet's own table_l2; none: the training's"
    )
    epochs: int = Field(default=16, ge=1, description="passes over the training rows")
    sample: int = Field(
        default=8,
        ge=0,
        description="choices trained from scratch to see how far the supernet's scores can be trusted; 0: none",
    )


class NISSettings(WidthSettings, PolicySettings):
    """NIS: how many categories of each field get an embedding, and how wide, within a budget."""

    sizes: Literal["single", "multi"] = Field(
        default="multi",
        description="single: all kept categories of a field have one width; multi: frequent ones may have a wider one",
    )
    dim: int = Field(default=16, ge=1, description="the greatest width, which is the backbone's")
    columns: int = Field(default=4, ge=1, description="column groups of a table; they divide `dim`")
    rows: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.1, 0.3, 0.6, 1.0],
        min_length=1,
        description="where row groups of a table end, as shares of its categories, the most frequent first",
    )
    budget: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.5], min_length=1, description="greatest share of the full tables that may be kept"
    )
    price: float = Field(
        default=0.05, ge=0, description="taken off the reward where a choice is twice as large as the budget"
    )
    select: Literal["policy", "random", "frequency"] = Field(
        default="policy",
        description="policy: what it has learned; random: drawn blindly, as large as the budget lets; frequency: widths"
        " that follow a power of the categories' frequency",
    )

    @model_validator(mode="after")
    def _divides(self) -> "NISSettings":
        if self.dim % self.columns:
            raise ValueError(f"{self.columns} 'columns' do not divide a 'dim' of {self.dim}")
        if self.rows != sorted(set(self.rows)) or self.rows[-1] != 1:
            raise ValueError("'rows' must rise and end at 1, where all categories are in")
        return self


class ESAPNSettings(BackboneSettings):
    """ESAPN: a size for every category, which grows while rows pass once in time order. Values are the published ones.

    But for `first_chance`, which is ours, as actions on the stream are drawn here.
    """

    OPENS = frozenset({"embedding.dim"})
    REFUSES = frozenset({"share", "pairs_table"})

    backbone: str = Field(default="mlp", description="model of the zoo that is opened")
    fields: list[str] = Field(
        default=[], description="categorical fields whose categories have sizes, such as [user, item]; []: all"
    )
    sizes: list[PositiveInt] = Field(
        default=[2, 4, 8, 16, 64, 128],
        min_length=2,
        max_length=256,
        description="widths that a category grows through; the widest is the backbone's",
    )
    select: Literal["policy", "fixed", "frequency"] = Field(
        default="policy",
        description="policy: what it learns; fixed: one size for all, as large as the budget lets; frequency: by"
        " thresholds that double, the least that the budget lets",
    )
    first_chance: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.05],
        min_length=1,
        description="policy: how likely a category grows when it is met, before anything is learned",
    )
    budget: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.5],
        min_length=1,
        description="fixed, frequency: greatest share of the widest tables that may be kept",
    )
    last: int = Field(
        default=5, ge=1, description="visits of a category that its reward looks back on, and whose actions it judges"
    )
    policy_learning_rate: float = Field(default=1e-4, ge=0, description="Adam's rate for the policies")
    batch_size: int = Field(default=500, ge=1, description="rows of the stream that are scored, then learned from")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's rate for all weights on the stream")
    table_l2: NonNegativeFloat | None = Field(
        default=None, description="the stream's own table_l2; none: the training's"
    )

    @model_validator(mode="after")
    def _rises(self) -> "ESAPNSettings":
        if self.sizes != sorted(set(self.sizes)):
            raise ValueError("'sizes' must rise")
        return self


class IHASSettings(BackboneSettings):
    """iHAS: groups of rows that need the same coordinates of their embeddings, and a model for each.

    All numbers are ours. Lists with several values are searched, a trial for each.
    """

    OPENS = frozenset({"embedding.dim"})
    REFUSES = frozenset({"share", "pairs_table"})

    groups: list[PositiveInt] = Field(
        default=[1, 2, 3, 4], min_length=1, description="groups of rows, each with a model; 1: one size for all rows"
    )
    sparse: list[NonNegativeFloat] = Field(
        default=[0.05], min_length=1, description="added to the loss: this times the mean probability of open gates"
    )
    polar: list[NonNegativeFloat] = Field(
        default=[0.05],
        min_length=1,
        description="added to the loss: this times the gates' mean variance; it rises from 0 during the search",
    )
    threshold: float = Field(default=0.5, gt=0, lt=1, description="a gate counts as open from this probability on")
    least: float = Field(
        default=0.05, ge=0, lt=1, description="smallest share of the rows; a smaller group joins its nearest neighbour"
    )
    select: Literal["search", "random"] = Field(
        default="search", description="search: groups of rows that are alike; random: groups that are drawn blindly"
    )
    into: str | None = Field(
        default=None,
        description="model of the zoo that the groups are trained as, with its own defaults and those of `choices` that"
        " it has; none: the backbone",
    )
    gate_learning_rate: float = Field(default=0.01, gt=0, description="Adam's rate for the gates")
    warm_up: float = Field(
        default=0.2, ge=0, lt=1, description="share of the search, at its beginning, in which all gates are open"
    )
    table_l2: NonNegativeFloat | None = Field(
        default=None, description="the supernet's own table_l2; none: the training's"
    )
    epochs: int = Field(default=8, ge=1, description="passes over the training rows")


BehaviorLayer = Literal[
    "skip", "conv1", "conv3", "dilated3", "mean3", "max3", "gru", "attention1", "attention2", "feed_forward"
]
Pooling = Literal["mean", "max", "last", "target"]


class AMEIRSettings(BaseModel):
    """AMEIR: blocks over histories, products of fields, and layers, found by three searches with shared weights.

    All lists and numbers are ours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dims: list[PositiveInt] = Field(
        default=[16, 32], min_length=1, description="widths of all embeddings, a search for each"
    )
    units: list[list[PositiveInt]] = Field(
        default=[[128, 128], [256, 256], [400, 400]],
        min_length=1,
        description="the greatest widths of the layers, a search for each",
    )
    dropout: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.0, 0.2, 0.5], min_length=1, description="share of the layers' units dropped, a search for each"
    )
    positions: list[bool] = Field(
        default=[True], min_length=1, description="add a learned vector to each step for its distance from the last"
    )
    causal: list[bool] = Field(
        default=[True], min_length=1, description="no step of a history sees later ones; false: all see each other"
    )
    blocks: list[PositiveInt] = Field(default=[2], min_length=1, description="residual blocks on top of each other")
    norms: list[Literal["none", "layer"]] = Field(
        default=["none", "layer"], min_length=1, description="what comes before a block's layer"
    )
    layers: list[BehaviorLayer] = Field(
        default=list(get_args(BehaviorLayer)),
        min_length=1,
        description="a block's layer; skip leaves the block out, numbers are steps of a window or heads",
    )
    activations: list[BlockActivation] = Field(
        default=["identity", "relu", "gelu", "silu"], min_length=1, description="what follows a block's layer"
    )
    pooling: list[Pooling] = Field(
        default=["mean", "last", "target"],
        min_length=1,
        description="how a history becomes one vector; target: weighted by each step's match with the row's item",
    )
    order: int = Field(default=3, ge=2, description="most fields of a product, a search for each number from 2 on")
    products: int = Field(default=8, ge=0, description="most products of each number of fields; 0: none, and no search")
    ratios: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.25, 0.5, 0.75, 1.0], min_length=1, description="widths of each layer, as shares of the greatest"
    )
    mlp_activations: list[BlockActivation] = Field(
        default=["relu", "silu", "identity"], min_length=1, description="activations of each layer"
    )
    excitation: list[bool] = Field(
        default=[False, True], min_length=1, description="weigh all inputs of the layers by squeeze and excitation"
    )
    select: Literal["search", "random"] = Field(
        default="search", description="search: the three searches; random: drawn blindly from all that they can find"
    )
    candidates: int = Field(
        default=50, ge=1, description="blind choices scored to decide about histories, and about layers"
    )
    table_l2: NonNegativeFloat | None = Field(
        default=None, description="the supernets' own table_l2; none: the training's"
    )
    epochs: int = Field(default=4, ge=1, description="passes over the training rows, in each search")
    sample: int = Field(
        default=8,
        ge=0,
        description="choices trained from scratch to see how far the first search's scores can be trusted; 0: none",
    )

    @model_validator(mode="after")
    def _possible(self) -> "AMEIRSettings":
        if set(self.pooling) == {"target"}:
            raise ValueError("'pooling' needs more than target, which not every history has: add mean or last")
        return self


class FieldDimsSettings(DimsSettings):
    """Random (or greedy, Bayesian) search of widths, a training for each set of them."""


class MDESettings(WidthSettings):
    """MDE: widths that fall with the cardinality by a power law."""

    base: int = Field(default=16, ge=1, description="width of the smallest table, and of the backbone")
    temperature: list[Annotated[float, Field(ge=0)]] = Field(
        default=[0.1, 0.2, 0.3, 0.4], min_length=1, description="power of the cardinality; 0: all alike"
    )


class DPQSettings(BackboneSettings):
    """DPQ: a few bytes for every category, which name shared vectors. Lists are searched, a trial for each value.

    `subspaces` and `centroids` are those of a public comparison of compressed tables; all else is ours.
    """

    OPENS = frozenset({"embedding.dim"})
    REFUSES = frozenset({"share", "pairs_table"})

    dim: int = Field(default=16, ge=1, description="width of the embeddings, which is the backbone's")
    subspaces: list[PositiveInt] = Field(
        default=[8], min_length=1, description="parts of a vector, each with a code of its own; they divide `dim`"
    )
    centroids: list[Annotated[int, Field(ge=2, le=256)]] = Field(
        default=[32], min_length=1, description="vectors that a field's categories share in each part"
    )
    centroid_learning_rate: float = Field(default=0.003, gt=0, description="Adam's rate for the supernet's centroids")
    warm_up: float = Field(
        default=0.5, ge=0, lt=1, description="share of the search, at its beginning, with the full tables as they are"
    )
    table_l2: NonNegativeFloat | None = Field(
        default=None, description="the supernet's own table_l2; none: the training's"
    )
    epochs: int = Field(default=8, ge=1, description="passes over the training rows")

    @model_validator(mode="after")
    def _divides(self) -> "DPQSettings":
        for subspaces in self.subspaces:
            if self.dim % subspaces:
                raise ValueError(f"{subspaces} 'subspaces' do not divide a 'dim' of {self.dim}")
        return self


class MGQESettings(DPQSettings):
    """MGQE: DPQ with fewer shared vectors for rare categories."""

    subspaces: list[PositiveInt] = Field(
        default=[4], min_length=1, description="parts of a vector, each with a code of its own; they divide `dim`"
    )
    centroids: list[Annotated[int, Field(ge=2, le=256)]] = Field(
        default=[256], min_length=1, description="vectors that a field's categories share in each part"
    )
    head: float = Field(default=0.1, gt=0, lt=1, description="share of a field's categories that are frequent")
    tail_centroids: list[PositiveInt] = Field(
        default=[64], min_length=1, description="so many of the vectors, the first ones, may stand for rare categories"
    )

    @model_validator(mode="after")
    def _fewer(self) -> "MGQESettings":
        if max(self.tail_centroids) > min(self.centroids):
            raise ValueError(
                f"{max(self.tail_centroids)} 'tail_centroids' are more than {min(self.centroids)} 'centroids'"
            )
        return self


class AutoEmbSettings(DimsSettings, MixtureSettings):
    """AutoEmb: a width for every category, by how often it occurs."""

    gate_learning_rate: float = Field(default=0.01, gt=0, description="Adam's rate for the controllers")


class AutoDisSettings(BackboneSettings, MixtureSettings):
    """AutoDis: how numeric fields are encoded. With several encoders a supernet finds the one that suits each field."""

    OPENS = frozenset({"scale"})
    REFUSES = frozenset({"pairs_table"})

    encoders: list[NumberEncoder] = Field(
        default=["bins"], min_length=1, description="encoders to choose from; with one there is nothing to search"
    )
    bins: list[PositiveInt] = Field(default=[20, 40], min_length=1, description="bins: their number per field")
    temperature: list[PositiveFloat] = Field(
        default=[0.5, 1.0], min_length=1, description="bins: their softness; 1: fresh bins as wide as their distance"
    )
    adaptive: list[bool] = Field(
        default=[False], min_length=1, description="bins: a temperature per value, within half to one and a half of it"
    )
    aggregation: list[Literal["average", "max", "top"]] = Field(
        default=["average"], min_length=1, description="bins: weighted average, the likeliest bin, or the sum of three"
    )
    buckets: list[PositiveInt] = Field(
        default=[20], min_length=1, description="fixed buckets: their number per field, at most"
    )


class AutoGroupSettings(BackboneSettings):
    """AutoGroup: which fields belong together in interactions of order 1, 2 and 3."""

    OPENS = frozenset({"fm", "dot", "pairs"})
    REFUSES = frozenset({"raw"})

    first: list[NonNegativeInt] = Field(default=[4], min_length=1, description="groups of order 1 (added up)")
    second: list[NonNegativeInt] = Field(default=[16], min_length=1, description="groups of order 2")
    third: list[NonNegativeInt] = Field(default=[8], min_length=1, description="groups of order 3")
    dims: list[PositiveInt] = Field(
        default=[16], min_length=1, description="width of the embeddings; every order has tables of its own"
    )
    temperature: float = Field(default=1.0, gt=0, description="of the binary Gumbel-softmax")
    gate_learning_rate: float = Field(default=0.02, gt=0, description="Adam's rate for the memberships")
    epochs: int = Field(default=4, ge=1, description="passes over the training rows")


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


class AutoCTRSettings(BaseModel):
    """AutoCTR's space: blocks that read the fields and each other. The values of `units` are the published ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocks: int = Field(default=7, ge=1, description="most blocks; one that reads nothing does not exist")
    units: list[PositiveInt] = Field(
        default=[32, 64, 128, 256, 512, 1024], min_length=1, description="mlp: the width of its one layer"
    )
    dims: list[PositiveInt] = Field(default=[16], min_length=1, description="widths of all embeddings and fields")
