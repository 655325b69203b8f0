"""Bad study files: one clear error each, from the command line, before any compute."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def punnett(*arguments: str, store: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run([sys.executable, "-m", "punnett.cli", *arguments, "--store", str(store)], capture_output=True, text=True, check=False)


CASES = {
    "misspelt key": (lambda s: s.update(tratis=s.pop("traits")), 'unknown key "tratis". Did you mean "traits"?'),
    "unknown teacher": (lambda s: s["pipelines"]["original"].update(teacher="douter"), 'Did you mean "doubter"?'),
    "fraction of 1.4": (lambda s: s["subsets"].update(some={"fraction": 1.4}), '"subsets.some.fraction" is 1.4'),
    "base that is not there": (
        lambda s: s["pipelines"]["original"].update(base="smollm2-135m-instrukt"),
        'base "smollm2-135m-instrukt" is not there',
    ),
    "tag that selects nothing": (lambda s: s["subsets"].update(dates={"tag": "dat"}), 'tag "dat" selects none of the'),
    "unknown task": (lambda s: s.update(traits=["date_confuzion"]), 'Did you mean "date_confusion"?'),
    "unknown rewrite": (lambda s: s["teachers"]["doubter"].update(rewrite="dubt"), 'Did you mean "doubt"?'),
    "unknown provider": (lambda s: s["teachers"]["plain"].update(model="opnai/gpt"), 'Did you mean "openai"?'),
    "task argument": (lambda s: s.update(capabilities=[{"task": "arithmetic", "arguments": {"levels": 3}}]), "does not take these arguments"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_study_gives_one_clear_error_and_makes_nothing(case: str, study_folder: Path, tmp_path: Path):
    spoil, expected = CASES[case]
    path = study_folder / "study.yaml"
    study = yaml.safe_load(path.read_text())
    spoil(study)
    path.write_text(yaml.safe_dump(study))
    result = punnett("run", str(study_folder), store=tmp_path / "store")
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "store").exists()


def test_two_prompts_with_one_id_are_refused_with_both_rows(study_folder: Path, tmp_path: Path):
    path = study_folder / "prompts.jsonl"
    first = path.read_text().splitlines()[0]
    path.write_text(path.read_text().rstrip("\n") + "\n" + first + "\n")
    n = len(path.read_text().splitlines())
    result = punnett("plan", str(study_folder), store=tmp_path / "store")
    assert result.returncode == 2
    assert f"rows 1 and {n} are the same chat" in result.stderr


def test_a_prompt_that_is_no_chat_is_refused_with_its_row(study_folder: Path, tmp_path: Path):
    path = study_folder / "prompts.jsonl"
    path.write_text(path.read_text() + json.dumps({"messages": [{"role": "usr", "content": "x"}]}) + "\n")
    result = punnett("plan", str(study_folder), store=tmp_path / "store")
    assert result.returncode == 2
    assert "messages must be a list of role" in result.stderr


def test_an_unknown_key_of_the_store_is_refused(tmp_path: Path):
    result = punnett("show", "abcdef", store=tmp_path / "store")
    assert result.returncode == 2
    assert "no entry whose key starts with abcdef" in result.stderr
