"""A base's folder in, a resident model out whose linear layers and attention serve many students in one pass."""

import functools
from typing import Any

import torch
from torch import nn

from punnett.bases import load_model
from punnett.errors import RunError
from punnett.shared_base import attention
from punnett.shared_base.adapter import Site, initial_state
from punnett.shared_base.attention import SequenceAttention
from punnett.shared_base.linear import SharedLinear
from punnett.shared_base.passes import hidden_states, logits_of

LARGEST_DEVIATION = {torch.float32: 1e-3, torch.bfloat16: 0.15}
PROBES = ([3, 5, 7, 11, 2, 13, 4, 9, 6, 8], [12, 6, 3, 5, 10, 7])


class SharedBase:
    """A frozen model that is ready for flat passes, and the sites where adapters attach to it."""

    def __init__(self, model: Any) -> None:
        refuse_mixtures(model)
        self.model = model
        self.sites = _make_shared(model)
        _compare_with_itself(model)

    @property
    def device(self) -> Any:
        """Where the base lies."""
        return self.model.device


@functools.lru_cache(maxsize=1)
def load_shared(location: str, dtype: str) -> SharedBase:
    """The shared base of a folder, loaded once. Raises RunError for models that cannot be shared."""
    return SharedBase(load_model(location, dtype))


def refuse_mixtures(model: Any) -> None:
    """Raise RunError for a mixture of experts.

    Its experts are stacked weights, not linear layers, so PEFT's all-linear would leave them out without a word; and
    how many tokens an expert gets depends on the whole batch, so students would not stay apart to the bit.
    """
    config = model.config.get_text_config()
    counts = {name: getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")}
    found = [name for name, value in counts.items() if isinstance(value, int) and value > 1]
    found += [type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Experts")][:1]
    if found:
        raise RunError(
            f"{type(model).__name__} is a mixture of experts ({found[0]}), which students cannot share: choose a dense base, "
            "such as a Llama, SmolLM, Qwen or Gemma without experts"
        )


def _make_shared(model: Any) -> list[Site]:
    """Turn every linear layer that PEFT's all-linear targets into a shared one, and set our attention."""
    attention.register()
    names = [name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in initial_state(model, 1, 0) if ".lora_A." in name]
    sites = []
    for name in names:
        linear = model.get_submodule(name)
        if type(linear) not in (nn.Linear, SharedLinear):
            raise RunError(f"{type(model).__name__}: {name} is a {type(linear).__name__}, and only plain linear layers can be shared")
        linear.__class__ = SharedLinear
        linear.site = len(sites)
        sites.append(Site(name, linear.in_features, linear.out_features))
    model.set_attn_implementation(attention.NAME)
    if model.config._attn_implementation != attention.NAME:
        raise RunError(f"{type(model).__name__} does not let its attention be set, so students cannot share it")
    return sites


@torch.inference_mode()
def _compare_with_itself(model: Any) -> None:
    """Ask two sequences in one flat pass and one by one the ordinary way: whatever the architecture, they must agree."""
    size = model.config.get_text_config().vocab_size
    probes = [[i % size for i in probe] for probe in PROBES]
    positions = [place for probe in probes for place in range(len(probe))]
    ids = [i for probe in probes for i in probe]
    try:
        flat = logits_of(model, hidden_states(model, ids, positions, SequenceAttention([len(p) for p in probes]), None))
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunError(f"{type(model).__name__} cannot be shared by students: it does not take sequences laid end to end ({error})") from error
    alone = torch.cat([model(input_ids=torch.tensor([probe], device=model.device)).logits[0].float() for probe in probes])
    deviation = ((flat - alone).abs().max() / alone.abs().max().clamp(min=1.0)).item()
    if not deviation <= LARGEST_DEVIATION[model.dtype]:
        raise RunError(
            f"{type(model).__name__} cannot be shared by students: two sequences in one pass give other logits than one by one "
            f"(relative deviation {deviation:.2g})"
        )
