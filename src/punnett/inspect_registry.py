"""What Inspect finds through the entry point: the model provider `punnett/` and our tasks."""

from inspect_ai.model import ModelAPI, modelapi

from punnett.evaluation.arithmetic import arithmetic as arithmetic
from punnett.evaluation.date_confusion import date_confusion as date_confusion


@modelapi(name="punnett")
def punnett() -> type[ModelAPI]:
    """Students and bases; the engine is loaded only when one is asked."""
    from punnett.serving.provider import StudentAPI

    return StudentAPI
