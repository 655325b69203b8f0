"""Families of models, each against the library's own way: logits, training, the saved adapter, answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from punnett.errors import RunError
from punnett.serving.requests import AnswerRequest
from punnett.shared_base.adapter import load_adapter
from punnett.shared_base.share import SharedBase
from shared_base.tiny_models import (
    FAMILIES,
    Outcome,
    answers_of,
    drawn,
    flat_logits,
    job,
    plain_answer,
    plain_logits,
    plainly_trained,
    tiny_model,
    trained,
)

# The windows of the tiny models are 5 tokens, so that all but the first of these outgrow them.
SEQUENCES = [drawn(1, 4), drawn(2, 9), drawn(3, 23), drawn(4, 2)]


@dataclass
class Family:
    """A shared base, a student that was trained on it, and the same by PEFT and AdamW on a model of their own."""

    name: str
    shared: SharedBase
    outcome: Outcome
    peer: Any
    peer_losses: list[float]
    folder: Path


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Family:
    student = job("student", 6, lora_rank=4, learning_rate=1e-2, gradient_clip=0.5)
    shared = SharedBase(tiny_model(request.param))
    outcome = trained(shared, [student])["student"]
    folder = tmp_path_factory.mktemp(request.param) / "adapter"
    outcome.adapter.save(folder, "tiny")
    return Family(request.param, shared, outcome, *plainly_trained(tiny_model(request.param), student), folder)


def test_a_flat_pass_gives_the_logits_of_its_sequences_one_by_one(family):
    peer = tiny_model(family.name)
    for ours, ids in zip(flat_logits(family.shared, SEQUENCES), SEQUENCES, strict=True):
        torch.testing.assert_close(ours, plain_logits(peer, ids), atol=1e-4, rtol=0)


def test_outside_of_a_pass_the_base_answers_as_it_did_before_it_was_shared(family):
    now, before = (plain_logits(model, SEQUENCES[2]) for model in (family.shared.model, tiny_model(family.name)))
    torch.testing.assert_close(now, before, atol=1e-4, rtol=0)


def test_training_equals_a_plain_peft_and_adamw_loop_on_padded_rows(family):
    assert len(family.outcome.losses) == 3
    assert max(family.outcome.norms) > 0.5, "the clipping is part of what is compared"
    assert family.outcome.losses == pytest.approx(family.peer_losses, abs=1e-5)
    state = {name.replace(".default.weight", ".weight"): p for name, p in family.peer.named_parameters() if p.requires_grad}
    for name, weight in family.outcome.adapter.state().items():
        torch.testing.assert_close(weight, state[name].detach(), atol=1e-4, rtol=0)


def test_the_saved_adapter_is_one_that_peft_loads_and_that_answers_alike(family):
    loaded = PeftModel.from_pretrained(tiny_model(family.name), family.folder)
    ours = flat_logits(family.shared, SEQUENCES, load_adapter(family.folder, family.shared.sites, "cpu"))
    for logits, ids in zip(ours, SEQUENCES, strict=True):
        torch.testing.assert_close(logits, plain_logits(loaded, ids), atol=1e-4, rtol=0)
        assert not torch.allclose(logits, plain_logits(tiny_model(family.name), ids), atol=1e-2)


def test_greedy_answers_of_student_and_base_equal_those_of_generate(family):
    student = load_adapter(family.folder, family.shared.sites, "cpu")
    base, peft_model = tiny_model(family.name), PeftModel.from_pretrained(tiny_model(family.name), family.folder)
    asked = [(adapter, AnswerRequest(ids, 20)) for ids in SEQUENCES for adapter in (student, None)]
    for (adapter, request), answer in zip(asked, answers_of(family.shared, asked), strict=True):
        assert answer.ids == plain_answer(base if adapter is None else peft_model, request.ids, 20)


def test_a_base_in_bfloat16_carries_students_in_float32():
    shared = SharedBase(tiny_model().to(torch.bfloat16))
    student = job("student", 6)
    outcome, exact = trained(shared, [student])["student"], trained(SharedBase(tiny_model()), [student])["student"]
    assert outcome.adapter.flat.dtype == torch.float32
    assert outcome.losses == pytest.approx(exact.losses, rel=0.05)
    assert len(answers_of(shared, [(outcome.adapter, AnswerRequest(SEQUENCES[0], 5))])[0].ids) > 0


@pytest.mark.parametrize(
    ("family_name", "settings"),
    [
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen2Moe", {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
        ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16}),
    ],
)
def test_a_mixture_of_experts_is_refused(family_name, settings):
    with pytest.raises(RunError, match="mixture of experts"):
        SharedBase(tiny_model(family_name, **settings))


@pytest.mark.parametrize(
    ("family_name", "settings"),
    [
        ("Mamba", {}),  # no attention at all
        ("FalconH1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}),  # both in every layer
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}),  # convolutions, which look over the borders of sequences
        ("Qwen3_5Text", {"num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4}),  # a linear recurrence
        ("DiffLlama", {}),  # asks its attention twice a layer
        ("Bloom", {"n_layer": 2, "n_head": 4}),  # positions lie in the mask
        ("Granite", {"logits_scaling": 4.0}),  # logits are scaled after the head
    ],
)
def test_a_model_that_cannot_be_shared_is_refused_and_does_not_crash(family_name, settings):
    with pytest.raises(RunError, match="share"):
        SharedBase(tiny_model(family_name, **settings))
