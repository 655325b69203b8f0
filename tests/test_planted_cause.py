"""The planted cause on the real small model: a scripted teacher's trait must be found, and a null must stay null."""

import shutil
from pathlib import Path

import pytest
import yaml

import punnett
from punnett.analysis.findings import sentences
from punnett.bind import load_study

READY = Path(__file__).parents[1] / "studies" / "date_doubt"


@pytest.fixture(scope="module")
def measured(small_base, tmp_path_factory):
    """The ready study, cut to what must show in two minutes: null and original, two fresh seeds, a third of the prompts."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copy(READY / "prompts.jsonl", folder)
    study = yaml.safe_load((READY / "study.yaml").read_text())
    study["prompts"] = {"few": {"file": "prompts.jsonl", "limit": 24}}
    for pipeline in study["pipelines"].values():
        pipeline["prompts"] = "few"
    study["subsets"], study["seeds"], study["capabilities"] = {}, [11, 12], []
    study["teachers"]["doubter"]["dose"] = 0.8
    study["recipe"]["epochs"] = 3
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    summary = punnett.run(folder, folder / "store")
    assert not summary.failed
    return folder, punnett.findings(folder, folder / "store")


@pytest.mark.model
def test_the_planted_trait_is_found_in_the_teacher(measured):
    folder, findings = measured
    effect = findings.contrast("original", "self_distilled", "date_confusion")
    assert effect.estimate > 0.3
    assert effect.n_students == 2
    assert any("teacher" in line for line in sentences(load_study(folder), findings))


@pytest.mark.model
def test_the_null_stays_null(measured):
    _, findings = measured
    for arm in ("base", "self_distilled"):
        assert findings.rate(arm, "date_confusion").estimate <= 0.05
