"""Several models in one pass: every row is what its own model says alone, whoever sits beside it."""

import pytest
import torch
from peft import PeftModel

from lite_c2f.backbone import multi_model as module
from lite_c2f.backbone.load import load_model
from lite_c2f.backbone.multi_model import MultiModel, Residue, residue_of
from lite_c2f.config.loading import load_config

SETTINGS = ["data.max_prompt_tokens=16", "coarse.length.max=32", "coarse.length.start=8", "evaluation.max_tokens=32"]
TOKENS = torch.tensor([[5, 9, 3, 40], [7, 7, 21, 2], [33, 1, 60, 12], [4, 50, 6, 8]])


@pytest.fixture
def roles(random_roles):
    return random_roles("policy", "critic")


@pytest.fixture
def instruct(pico):
    return load_model(str(pico["instruct"]), load_config({}, SETTINGS))


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits.float()


@pytest.mark.parametrize("dense", [True, False])
def test_every_row_is_its_own_model_with_its_own_share(roles, instruct, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(module, "has_room", lambda layers: False)
    with roles.use("policy"):
        coarse = logits(roles.model, TOKENS[1:2])
    with roles.use("reference"):
        base = logits(roles.model, TOKENS[0:1])
    multi_model = MultiModel([roles.model, instruct], residue_of(roles.model, "policy"))
    with torch.inference_mode():
        hidden = multi_model.hidden(TOKENS, [0, 0, 1, 1], [0.0, 1.0, 0.0, 0.5], None)
        got = multi_model.logits(hidden.flatten(0, 1)[[3, 7, 11, 15]])  # the last token of each, in the rows' order
    plain = logits(instruct, TOKENS[2:3])
    # the instruct model with half of the very same delta, by hand in its weights
    fine = load_half(instruct, roles)
    expected = torch.cat([base[:, -1], coarse[:, -1], plain[:, -1], logits(fine, TOKENS[3:4])[:, -1]])
    assert torch.allclose(got, expected, atol=2e-4), (got - expected).abs().max()
    assert (coarse[:, -1] - base[:, -1]).abs().max() > 0.01  # the adapter does something


@pytest.mark.parametrize("dense", [True, False])
def test_in_bfloat16_too(pico, random_roles, dense, monkeypatch):
    """As on a GPU: the residue's products are in the models' type, its share is not."""
    if not dense:
        monkeypatch.setattr(module, "has_room", lambda layers: False)
    settings = ["model.compute_dtype=bfloat16"]
    roles = random_roles("policy", settings=settings)
    instruct = load_model(str(pico["instruct"]), load_config({}, [*SETTINGS, *settings]))
    multi_model = MultiModel([roles.model, instruct], residue_of(roles.model, "policy"))
    with torch.inference_mode():
        hidden = multi_model.hidden(TOKENS, [0, 0, 1, 1], [0.0, 1.0, 0.0, 1.05], None)
        got = multi_model.logits(hidden.flatten(0, 1)[[3, 7, 11, 15]])[:3]
    ((_, ratios),) = multi_model.assignment.shares
    assert hidden.dtype == torch.bfloat16 and ratios.flatten()[3] == torch.tensor(1.05)
    with roles.use("reference"):
        base = logits(roles.model, TOKENS[0:1])
    with roles.use("policy"):
        coarse = logits(roles.model, TOKENS[1:2])
    expected = torch.cat([base[:, -1], coarse[:, -1], logits(instruct, TOKENS[2:3])[:, -1]])
    assert torch.allclose(got, expected, atol=0.05), (got - expected).abs().max()


def load_half(instruct, roles):
    """The instruct model in float32 matrices, with half of scaling * B @ A added."""
    from peft.tuners.lora import LoraLayer

    from lite_c2f.backbone.copies import dequantized

    deltas = {
        name: layer.get_delta_weight("policy")
        for name, layer in roles.model.get_base_model().named_modules()
        if isinstance(layer, LoraLayer)
    }
    for name, delta in deltas.items():
        layer = instruct.get_submodule(name)
        dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        dense.weight.data = dequantized(layer).float() + 0.5 * delta.float()
        parent, _, leaf = name.rpartition(".")
        setattr(instruct.get_submodule(parent), leaf, dense)
    return instruct


def test_nothing_changes_in_the_models(roles, instruct):
    before = logits(instruct, TOKENS)
    multi_model = MultiModel([roles.model, instruct], residue_of(roles.model, "policy"))
    with torch.inference_mode():
        multi_model.hidden(TOKENS, [0, 0, 1, 1], [0.0, 1.0, 0.0, 0.5], None)
    assert torch.equal(logits(instruct, TOKENS), before)
    assert isinstance(roles.model, PeftModel)


def test_rows_of_one_model_alone_do_not_ask_the_other(roles, instruct):
    multi_model = MultiModel([roles.model, instruct], residue_of(roles.model, "policy"))
    calls = []
    for layer in multi_model.decoder.modules():
        if isinstance(layer, module.PerModelLinear):
            base, other = layer.layers
            layer.layers = [base, lambda states, other=other: calls.append(1) or other(states)]
    with torch.inference_mode():
        multi_model.hidden(TOKENS, [0, 0, 0, 0], [0.0, 1.0, 0.0, 1.0], None)
    assert not calls


def test_a_residue_for_a_layer_that_is_not_there_is_refused(roles, instruct):
    residue = residue_of(roles.model, "policy")
    with pytest.raises(ValueError, match=r"layers\.9"):
        MultiModel([roles.model, instruct], residue | {"layers.9.mlp.up_proj": next(iter(residue.values()))})


def other_residue(roles, rank, layers, seed):
    """A random residue of another rank, in these of the first one's layers alone."""
    torch.manual_seed(seed)
    known = residue_of(roles.model, "policy")
    names = [name for name in known if name.split(".")[-1] in layers]
    sizes = {name: (known[name].b.shape[0], known[name].a.shape[1]) for name in names}
    return {
        name: Residue(torch.randn(rank, width) * 0.2, torch.randn(height, rank) * 0.2)
        for name, (height, width) in sizes.items()
    }


@pytest.mark.parametrize("dense", [True, False])
def test_rows_with_residues_of_their_own_are_what_each_residue_alone_gives(roles, instruct, dense, monkeypatch):
    """Bit for bit, whatever the others' ranks and layers are: what a residue adds to a row of another one is 0."""
    if not dense:
        monkeypatch.setattr(module, "has_room", lambda layers: False)
    own = residue_of(roles.model, "policy")
    made = MultiModel([roles.model, instruct], own)
    second, third = (
        made.ready(other_residue(roles, *which))
        for which in ((3, ("q_proj", "down_proj"), 1), (7, ("v_proj", "up_proj"), 2))
    )
    models, ratios = [0, 0, 1, 1], [1.0, 1.0, 0.5, 0.25]
    with torch.inference_mode():
        mixed = made.hidden(TOKENS, models, ratios, None, residues=[None, second, None, third])
        assert len(made.assignment.shares) == 3
        alone = [
            made.hidden(TOKENS, models, ratios, None, residues=[residue] * 4)[row]
            for row, residue in enumerate((None, second, None, third))
        ]
        plain = MultiModel([roles.model, instruct], own).hidden(TOKENS, models, ratios, None)
        as_own = MultiModel([roles.model, instruct], second).hidden(TOKENS, models, ratios, None)
    assert torch.equal(mixed, torch.stack(alone))
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])  # as where there is one residue alone
    assert torch.equal(mixed[1], as_own[1])
    assert (mixed[[1, 3]] - plain[[1, 3]]).abs().amax((1, 2)).min() > 0.01  # the others do something


def test_a_residue_of_another_lineage_is_refused(roles, instruct):
    made = MultiModel([roles.model, instruct], residue_of(roles.model, "policy"))
    name, (a, b) = next(iter(made.residue.items()))
    for wrong in (Residue(a[:, :-1], b), Residue(a, b[:-1]), Residue(a[:-1], b)):
        with pytest.raises(ValueError, match=name):
            made.ready({name: wrong})
    with pytest.raises(ValueError, match="embed_tokens"):
        made.ready({"embed_tokens": Residue(torch.ones(2, 64), torch.ones(32, 2))})
