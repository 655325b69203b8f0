"""Adapters in PEFT's format in and out, bit by bit, and what is no plain adapter refused."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from punnett.errors import RunError
from punnett.shared_base.adapter import CONFIG, WEIGHTS, Adapter, Site, attach_adapter, initial_state, load_adapter
from punnett.shared_base.share import SharedBase
from shared_base.tiny_models import some_adapter, tiny_model

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def shared():
    return SharedBase(tiny_model())


@pytest.fixture
def folder(shared, tmp_path):
    some_adapter(shared, 1).save(tmp_path / "saved", "tiny")
    return tmp_path / "saved"


def state_of(peft_model) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(peft_model, save_embedding_layers=False)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_state_goes_in_and_comes_out_bit_by_bit(shared, rank, tmp_path):
    adapter = some_adapter(shared, 1, rank)
    state = adapter.state()
    copy = Adapter(shared.sites, rank, adapter.alpha, "cpu", trained=True)
    copy.fill(state)
    assert same(copy.state(), state)
    assert torch.equal(copy.flat, adapter.flat)
    adapter.save(tmp_path / "saved", "tiny")
    loaded = load_adapter(tmp_path / "saved", shared.sites, "cpu")
    assert torch.equal(loaded.flat, adapter.flat)
    assert (loaded.rank, loaded.scale) == (rank, adapter.scale)


def test_peft_reads_what_is_saved_bit_by_bit(shared, folder):
    peft_model = PeftModel.from_pretrained(tiny_model(), folder)
    assert same(state_of(peft_model), some_adapter(shared, 1).state())
    config = peft_model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (4, 8.0, 0.0, "none")
    assert config.base_model_name_or_path == "tiny"


def test_what_peft_itself_saved_is_read_bit_by_bit(shared, tmp_path):
    peft_model = attach_adapter(tiny_model(), 4, 8.0, 3)
    peft_model.save_pretrained(tmp_path)
    assert same(load_adapter(tmp_path, shared.sites, "cpu").state(), state_of(peft_model))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 8}, "does not fit"),
    ],
)
def test_an_adapter_that_is_not_plain_or_of_another_rank_is_refused(shared, folder, about, message):
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | about))
    with pytest.raises(RunError, match=message):
        load_adapter(folder, shared.sites, "cpu")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda state: state.pop(NAME), id="one is missing"),
        pytest.param(lambda state: state.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}), id="one is unknown"),
        pytest.param(lambda state: state.update({NAME: torch.zeros(4, 31)}), id="one has another width"),
    ],
)
def test_an_adapter_of_another_base_is_refused(shared, folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(RunError, match="does not fit the base"):
        load_adapter(folder, shared.sites, "cpu")


def test_the_weights_and_gradients_of_a_site_are_views_of_the_flat_vectors():
    adapter = Adapter([Site("a", 3, 5), Site("b", 2, 1)], rank=2, alpha=4.0, device="cpu", trained=True)
    parts = [part for site in (0, 1) for part in adapter.weights(site)]
    gradients = [part for site in (0, 1) for part in adapter.gradients(site)]
    assert [tuple(part.shape) for part in parts] == [(2, 3), (2, 5), (2, 2), (2, 1)]
    for vector, views in ((adapter.flat.data, parts), (adapter.flat.grad, gradients)):
        vector.copy_(torch.arange(22.0))
        assert torch.cat([view.flatten() for view in views]).tolist() == list(range(22))


def test_a_seed_gives_every_arm_the_same_initial_adapter_and_leaves_the_global_generator_alone(shared):
    before = torch.random.get_rng_state()
    first = initial_state(shared.model, 4, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert same(initial_state(shared.model, 4, 1), first)
    assert not same(initial_state(shared.model, 4, 2), first)
    assert all((not weight.any()) == ("lora_B" in name) for name, weight in first.items())


def test_drawing_an_initial_adapter_leaves_the_base_bare_and_is_what_peft_draws(shared):
    names = [name for name, _ in shared.model.named_modules()]
    drawn = initial_state(shared.model, 4, 1)
    assert [name for name, _ in shared.model.named_modules()] == names
    assert same(state_of(attach_adapter(tiny_model(), 4, 8.0, 1)), drawn)
