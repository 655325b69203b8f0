"""How a stage trains, and the unit of replication: the student."""

from typing import ClassVar, Literal

from pydantic import Field

from punnett.spec.key import Noun
from punnett.spec.mix import Mix
from punnett.spec.teacher import Base


class Recipe(Noun):
    """How one stage trains; the same for all the arms of a study. Everything here changes numbers, so all of it is in the key.

    `loss_normalisation`: `token_mean` divides a batch's summed loss by its trained tokens,
    `example_mean` averages each example first, `token_sum` divides by nothing (verbose teachers pull harder).
    """

    method: Literal["sft"] = "sft"
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: float = Field(default=32.0, gt=0.0)
    learning_rate: float = Field(default=5e-4, gt=0.0)
    schedule: Literal["constant", "linear"] = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    loss_normalisation: Literal["token_mean", "example_mean", "token_sum"] = "token_mean"
    max_tokens: int = Field(default=1024, ge=8)
    weight_decay: float = Field(default=0.0, ge=0.0)
    gradient_clip: float = Field(default=1.0, gt=0.0)
    dtype: Literal["float32", "bfloat16"] = "float32"


class Stage(Noun):
    """One training stage: what is trained on, and how."""

    mix: Mix
    recipe: Recipe
    system_prompt: str | None = None


class Student(Noun):
    """A base and its training stages under one seed. The unit of replication.

    The seed fixes the initial adapter and the order of the prompts, alike in every arm.
    """

    revision: ClassVar[int] = 2  # 2: trained together with others; sums are rounded in another order than before

    base: Base
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=1)
    seed: int
