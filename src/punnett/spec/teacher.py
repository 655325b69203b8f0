"""Who answers, and what an answer is: teachers, sampling settings, rollouts and sets of them."""

from typing import Annotated, Literal

from pydantic import Field

from punnett.spec.key import Noun, label
from punnett.spec.prompt import PromptSet


class Sampling(Noun):
    """How a model is asked. Temperature 0 is greedy."""

    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(default=256, ge=1)


class Base(Noun):
    """A language model on disk, named by what it holds and not by where it lies.

    The digests cover weights, configuration, tokenizer and chat template.
    """

    name: str = label()
    location: str = label()
    origin: str = label()
    weights_digest: str
    tokenizer_digest: str


class ModelTeacher(Noun):
    """A real model that answers, by its Inspect name (`hf/...`, `vllm/...`, `openai/...`, ...) or a base of ours."""

    kind: Literal["model"] = "model"
    name: str = label()
    model: str | Base
    sampling: Sampling = Sampling()


class ScriptedTeacher(Noun):
    """A deterministic rewrite of another teacher's answers with a known dose: the positive control.

    `rewrite` names an entry of `punnett.data.rewrites`; `dose` is the share of the prompts outside
    the rewrite's own target that get its mild form, chosen by prompt id and `seed`.
    """

    kind: Literal["scripted"] = "scripted"
    name: str = label()
    of: ModelTeacher
    rewrite: str
    rewrite_revision: int = 1
    dose: float = Field(default=1.0, ge=0.0, le=1.0)
    seed: int = 0


Teacher = Annotated[ModelTeacher | ScriptedTeacher, Field(discriminator="kind")]


class RolloutSet(Noun):
    """One teacher's answers to one set of prompts, under one system prompt."""

    prompts: PromptSet
    teacher: Teacher
    system_prompt: str | None = None
    draws: int = Field(default=1, ge=1)
    seed: int = 0

    @property
    def source(self) -> "RolloutSet | None":
        """The rollouts that a scripted teacher rewrites; None for a real one."""
        if isinstance(self.teacher, ScriptedTeacher):
            return self.model_copy(update={"teacher": self.teacher.of})
        return None


class Rollout(Noun):
    """One answer as it is stored: a row, not a request."""

    rollout_id: str
    prompt_id: str
    draw: int
    completion: str
    reasoning: str
    finish_reason: str
    served_model: str
