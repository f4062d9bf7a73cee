"""AutoRec: mappers, interactors and an optimizer wired by the user, every unset argument searched (Wang, Jin, Hu 2020).

In a pipeline file the method `autorec` stacks HyperInteractions over one mapper per kind of field (`space`). In Python
a recommender is wired freely:

    user = LatentFactorMapper(embedding_dim=64)("user")
    movie = LatentFactorMapper()("movie")
    low = HyperInteraction()([user, movie])
    high = MLP(dropout=0.0)([user, movie, low])
    template = RatingRecommender([low, high]).space(schema)

Both give a template: an architecture with choices in it (see `trainer.space`). Value lists and defaults are the
published ones. Ours differs in this: RandomSelect's input is a hyper-parameter; slot n of a HyperInteraction starts
with the n-th kind of interactor (three equal InnerProducts, the released default, are one); a history is pooled to its
mean.
"""

from trainer.methods.autorec.blocks import (
    FM,
    MLP,
    UNSET,
    Concatenate,
    CrossNet,
    DenseFeatureMapper,
    Elementwise,
    HyperInteraction,
    InnerProduct,
    LatentFactorMapper,
    RandomSelect,
    SelfAttention,
    SparseFeatureMapper,
)
from trainer.methods.autorec.recommender import CTRRecommender, RatingRecommender
from trainer.methods.autorec.stack import space

__all__ = [
    "FM",
    "MLP",
    "UNSET",
    "CTRRecommender",
    "Concatenate",
    "CrossNet",
    "DenseFeatureMapper",
    "Elementwise",
    "HyperInteraction",
    "InnerProduct",
    "LatentFactorMapper",
    "RandomSelect",
    "RatingRecommender",
    "SelfAttention",
    "SparseFeatureMapper",
    "space",
]
