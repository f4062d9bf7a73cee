from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from tests.trainer.mixed import batch_of, flat_schema, mixed_schema
from tests.trainer.small_spaces import schema as plain_schema
from trainer.architecture import Architecture
from trainer.build import Model, build
from trainer.errors import UserError
from trainer.methods.autorec import (
    FM,
    MLP,
    Concatenate,
    CrossNet,
    CTRRecommender,
    DenseFeatureMapper,
    Elementwise,
    HyperInteraction,
    InnerProduct,
    LatentFactorMapper,
    RandomSelect,
    RatingRecommender,
    SelfAttention,
    SparseFeatureMapper,
    space,
)
from trainer.methods.autorec.blocks import INTERACTORS, Interactor, Output
from trainer.methods.settings import AutoRecSettings
from trainer.space import Choice, choices, defaults, fill, fill_params


def options(template: Any) -> Mapping[str, tuple[Any, ...]]:
    return {name: choice.labels for name, choice in choices(template).items()}


def usual(template: Any) -> dict[str, Any]:
    """Choice name → label of its default, for the all-defaults filling."""
    found = choices(template)
    return {name: found[name].labels[index] for name, index in defaults(template).items()}


def ctr(outputs: Sequence[Output], **others: Any) -> dict[str, Any]:
    return CTRRecommender(outputs, **others).space(mixed_schema())


def model(filling: dict[str, Any], seed: int = 0) -> Model:
    return build(Architecture.from_dict(filling), label_mean=0.3, table_init=0.5, seed=seed).eval()


def node(template: dict[str, Any], name: str) -> dict[str, Any]:
    return next(node for node in template["nodes"] if node["id"] == name)


# ---- the published values (the sheet's table) -----------------------------------------------------------------------

PUBLISHED = {
    MLP: (
        {
            "mlp1.layers": (1, 2, 3),
            **{f"mlp1.units{n}": (16, 32, 64, 128, 256, 512, 1024) for n in (1, 2, 3)},
            "mlp1.norm": ("none", "batch"),
            "mlp1.dropout": (0.0, 0.25, 0.5),
        },
        {"mlp1.layers": 2, "mlp1.units1": 32, "mlp1.units2": 32, "mlp1.norm": "none", "mlp1.dropout": 0.0},
    ),
    FM: ({"fm1.dim": (4, 8, 16)}, {"fm1.dim": 8}),
    CrossNet: ({"cross1.layers": (1, 2, 3, 4)}, {"cross1.layers": 1}),
    SelfAttention: (
        {
            "attention1.width": (4, 8, 16),
            "attention1.dim": (4, 8, 16),
            "attention1.heads": (1, 2, 3, 4),
            "attention1.residual": (True, False),
        },
        {"attention1.width": 8, "attention1.dim": 8, "attention1.heads": 2, "attention1.residual": True},
    ),
    Elementwise: (
        {"elementwise1.operation": ("sum", "average", "multiply", "max", "min")},
        {"elementwise1.operation": "average"},
    ),
    InnerProduct: ({}, {}),
    Concatenate: ({}, {}),
}


@pytest.mark.parametrize("interactor", PUBLISHED, ids=lambda interactor: interactor.__name__)
def test_interactors_search_the_published_values(interactor: type[Interactor]) -> None:
    user, item = LatentFactorMapper(8)("user"), LatentFactorMapper(8)("item")
    template = ctr([interactor()([user, item])])
    assert (options(template), usual(template)) == PUBLISHED[interactor]


def test_mappers_search_the_published_values() -> None:
    latent, sparse, dense = LatentFactorMapper()("user"), SparseFeatureMapper()(), DenseFeatureMapper()()
    template = ctr([Concatenate()([latent, sparse, dense])])
    assert options(template) == {"latent1.dim": (8, 16, 32, 64, 128), "sparse1.dim": (8, 16), "dense1.dim": (8, 16)}
    assert usual(template) == {"latent1.dim": 32, "sparse1.dim": 8, "dense1.dim": 8}


def test_a_hyper_interaction_holds_one_to_six_of_eight_kinds() -> None:
    template = ctr([HyperInteraction()([SparseFeatureMapper(8)(), DenseFeatureMapper(8)()])])
    found = options(template)
    assert found["hyper1.parallel"] == (1, 2, 3, 4, 5, 6)
    assert usual(template)["hyper1.parallel"] == 3
    assert all(set(found[f"hyper1.{slot}.type"]) == set(INTERACTORS) for slot in range(1, 7))
    assert len(INTERACTORS) == 8


def test_which_input_is_selected_is_a_choice() -> None:
    user, item = LatentFactorMapper(8)("user"), LatentFactorMapper(8)("item")
    template = ctr([RandomSelect()([user, item])])
    assert options(template) == {"select1.input": ("latent1.user", "latent2.item")}


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_zero_and_false_are_values_and_not_unset() -> None:
    sparse = SparseFeatureMapper(8)()
    high = MLP(units=[16], batch_norm=False, dropout=0.0)([SelfAttention(8, 8, 2, residual=False)([sparse])])
    template = ctr([high])
    assert options(template) == {}
    assert node(template, "mlp1") == {
        "id": "mlp1",
        "op": "mlp",
        "in": ["attention1"],
        "units": [16],
        "norm": "none",
        "dropout": 0.0,
    }
    assert node(template, "attention1")["residual"] is False


def test_a_set_number_of_layers_leaves_their_units_open() -> None:
    template = ctr([MLP(layers=1, batch_norm=True, dropout=0.5)([SparseFeatureMapper(8)()])])
    assert list(options(template)) == ["mlp1.units1"]


def test_settings_give_other_values() -> None:
    settings = AutoRecSettings(mlp_units=[400, 200], mlp_layers=[3], fm_dims=[8, 64])
    sparse = SparseFeatureMapper(8)()
    template = CTRRecommender([MLP()([sparse]), FM()([sparse])]).space(mixed_schema(), settings)
    assert options(template)["mlp1.units3"] == (400, 200)
    assert usual(template)["mlp1.units1"] == 400
    assert usual(template)["fm1.dim"] == 8


# ---- wiring ---------------------------------------------------------------------------------------------------------


def test_a_searchable_recommender_in_four_lines() -> None:
    user, movie = LatentFactorMapper(embedding_dim=64)("user"), LatentFactorMapper()("item")
    low = HyperInteraction()([user, movie])
    high = MLP(dropout=0.0)([user, movie, low])
    template = RatingRecommender([low, high]).space(flat_schema("rating"))
    filling = fill_params(template, defaults(template))
    assert node(filling, "mlp1")["in"] == ["latent1.user", "latent2.item", "hyper1"]
    assert filling["head"] == {"mode": "linear", "in": ["hyper1", "mlp1"], "bias": True}
    assert model(filling)(batch_of(flat_schema("rating"))).shape == (8,)


def test_a_block_used_twice_is_one_node() -> None:
    shared = FM(8)([SparseFeatureMapper(8)()])
    template = ctr([MLP(units=[8])([shared]), CrossNet(1)([shared])])
    assert [node["id"] for node in template["nodes"]] == ["fm1", "mlp1", "cross1"]


def test_the_task_must_be_the_datasets() -> None:
    with pytest.raises(UserError, match="task is rating: use RatingRecommender"):
        CTRRecommender([SparseFeatureMapper()()]).space(mixed_schema("rating"))


def test_a_mapper_refuses_fields_it_does_not_take() -> None:
    with pytest.raises(UserError, match="DenseFeatureMapper: no such field 'user'; it takes price, age"):
        ctr([DenseFeatureMapper()("user")])


@pytest.mark.parametrize("interactor", [kind for kind in INTERACTORS if kind != "RandomSelect"])
def test_every_interactor_takes_logits_vectors_and_fields(interactor: str) -> None:
    """Inputs (B, 1), (B, d) and (B, M, d), alone and together; (B, M, d') from attention too."""
    sparse, dense, user = SparseFeatureMapper(8)(), DenseFeatureMapper(16)(), LatentFactorMapper(32)("user")
    logit, attended = InnerProduct()([user]), SelfAttention(4, 8, 2)([sparse])
    for inputs in ([logit], [user], [sparse], [attended], [logit, user, sparse, dense, attended]):
        template = ctr([INTERACTORS[interactor]()(inputs)])
        assert model(fill_params(template, defaults(template)))(batch_of(mixed_schema())).shape == (8,)


@pytest.mark.parametrize("kind", INTERACTORS)
def test_one_parallel_interactor_is_that_interactor(kind: str) -> None:
    user, item = LatentFactorMapper(8)("user"), LatentFactorMapper(8)("item")
    alone = ctr([INTERACTORS[kind]()([user, item])])
    settings = AutoRecSettings(interactors=[kind], parallel=[1])  # type: ignore[list-item]
    within = CTRRecommender([HyperInteraction()([user, item])]).space(mixed_schema(), settings)
    batch = batch_of(mixed_schema())
    plain, hyper = (model(fill_params(template, {})) for template in (alone, within))
    # Weights come in the same order: the concatenation around the interactor has none.
    hyper.load_state_dict(dict(zip(hyper.state_dict(), plain.state_dict().values(), strict=True)))
    torch.testing.assert_close(hyper(batch), plain(batch))


def test_the_inner_product_of_two_latent_factors_is_matrix_factorisation() -> None:
    user, item = LatentFactorMapper(8)("user"), LatentFactorMapper(8)("item")
    built, batch = model(ctr([InnerProduct()([user, item])], head="sum")), batch_of(mixed_schema())
    tables = {weight.shape[0]: weight for weight in built.tables.parameters()}
    product = (tables[20][batch.categorical[:, 0].long()] * tables[30][batch.categorical[:, 1].long()]).sum(1)
    torch.testing.assert_close(built(batch), product + built(batch)[0] - product[0])


# ---- the space of the pipeline file ---------------------------------------------------------------------------------


def filled(task: Any, params: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """The template of the method, filled by labels; other choices take their defaults."""
    template = space(plain_schema(task, categorical=3, numeric=2), AutoRecSettings(**settings))

    def choose(choice: Choice) -> int:
        return choice.labels.index(params[choice.name]) if choice.name in params else choice.default

    filling: dict[str, Any] = fill(template, choose)
    return filling


def test_the_first_trial_is_one_block_of_the_first_interactors() -> None:
    filling = filled("rating", {})
    assert [node["op"] for node in filling["nodes"]] == ["concat", "inner", "mlp", "fm", "concat"]
    assert filling["head"]["in"] == ["block1_1", "block1_2", "block1_3"]


def test_ratings_map_each_field_alone_and_clicks_all_together() -> None:
    latent = filled("rating", {"block1.parallel": 1, "block1.1.type": "MLP"})
    assert node(latent, "block1_1")["in"] == ["tables.c0", "tables.c1", "tables.c2", "dense"]
    assert latent["views"]["tables"]["encoders"]["c0"] == {"kind": "table", "dim": 32}
    sparse = filled("ctr", {"block1.parallel": 1, "block1.1.type": "MLP"})
    assert node(sparse, "block1_1")["in"] == ["tables", "dense"]
    assert sparse["views"]["tables"]["encoders"]["c0"] == {"kind": "table", "dim": 8}


def test_a_higher_block_sees_the_mappers_and_the_blocks_below() -> None:
    params = {"optimizer.blocks": 3, **{f"block{n}.parallel": 1 for n in (1, 2, 3)}}
    params |= {f"block{n}.1.type": "MLP" for n in (1, 2, 3)}
    filling = filled("ctr", params, blocks=[1, 3])
    assert node(filling, "block3_1")["in"] == ["tables", "dense", "block1", "block2"]
    assert filling["head"]["in"] == ["block3_1"]
    every = filled("ctr", {**params, "optimizer.inputs": "all"}, blocks=[1, 3], head_inputs=["last", "all"])
    assert every["head"]["in"] == ["block1_1", "block2_1", "block3_1"]


def test_products_may_have_tables_of_their_own() -> None:
    params = {"mapper.tables": "separate", "mapper.product_dim": 16, "block1.parallel": 2, "block1.1.type": "FM"}
    filling = filled("ctr", {**params, "block1.2.type": "MLP"}, tables=["shared", "separate"])
    assert node(filling, "block1_1")["in"] == ["products", "dense"]
    assert node(filling, "block1_2")["in"] == ["tables", "dense"]
    assert filling["views"]["products"]["encoders"]["c1"]["dim"] == 16
    shared = filled("ctr", {**params, "mapper.tables": "shared"}, tables=["shared", "separate"])
    assert node(shared, "block1_1")["in"] == ["tables", "dense"]


def test_first_order_weights_reach_the_optimizer() -> None:
    with_weights = filled("ctr", {"optimizer.first_order": True}, first_order=[False, True], head=["sum"])
    assert with_weights["head"]["in"][-1] == "first"
    assert {encoder["dim"] for encoder in with_weights["views"]["first"]["encoders"].values()} == {1}
    assert "first" not in filled("ctr", {}, first_order=[False, True])["head"]["in"]


def test_the_space_holds_biased_matrix_factorisation_and_deepfm() -> None:
    biased = {"first_order": [True], "head": ["sum"], "tables": ["separate"], "blocks": [1]}
    factorised = Architecture.from_dict(filled("rating", {"block1.parallel": 1}, **biased)).live()
    assert [node.op for node in factorised.nodes] == ["concat", "inner"]
    assert factorised.head.inputs == ("block1_1", "first")
    deep = filled("ctr", {"block1.parallel": 2, "block1.1.type": "FM", "block1.2.type": "MLP"}, **biased)
    assert [node.op for node in Architecture.from_dict(deep).live().nodes] == ["fm", "mlp"]


def test_a_history_is_pooled_over_the_table_of_its_items() -> None:
    template = space(plain_schema(categorical=2, sequences=1), AutoRecSettings())
    filling = fill_params(template, {})
    assert filling["views"]["history1"] == {"encoders": {"h0": {"kind": "share", "view": "tables"}}}
    assert node(filling, "block1_2")["in"] == ["tables", "pooled1"]


def test_groups_are_the_interactors_and_the_stages() -> None:
    settings = AutoRecSettings(first_order=[False, True], tables=["shared", "separate"])
    groups = {choice.group for choice in choices(space(plain_schema(), settings)).values()}
    slots = {f"block{block}.{slot}" for block in (1, 2) for slot in range(1, 7)}
    assert groups == {"mapper", "optimizer", "block1", "block2"} | slots


def test_towers_add_up_their_fields_before_anything_interacts() -> None:
    one_block = {"interactors": ["InnerProduct"], "parallel": [1], "blocks": [1]}
    filling = filled("rating", {}, towers={"left": ["c0", "c1"]}, **one_block)
    tower = {"id": "tower-left", "op": "elementwise", "kind": "sum", "in": ["tables.c0", "tables.c1"]}
    assert node(filling, "tower-left") == tower
    product = next(entry for entry in filling["nodes"] if entry["op"] == "inner")
    assert product["in"][:2] == ["tower-left", "tables.c2"]


def test_products_may_have_towers_of_their_own() -> None:
    towers = {"left": ["c0"], "right": ["c1", "c2"]}
    filling = filled("rating", {"mapper.tables": "separate"}, towers=towers, tables=["shared", "separate"])
    assert node(filling, "product-tower-right")["in"] == ["products.c1", "products.c2"]
    Architecture.from_dict(filling)


def test_towers_name_categorical_fields_of_latent_mappers() -> None:
    with pytest.raises(UserError, match="no categorical field 'nowhere'"):
        filled("rating", {}, towers={"left": ["nowhere"]})
    with pytest.raises(UserError, match="mapper: latent"):
        filled("ctr", {}, towers={"left": ["c0"]})
