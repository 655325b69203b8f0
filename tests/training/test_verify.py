"""The proofs of the concurrent trainer on a small shape; `punnett verify trainer` runs them at full size."""

import torch

from punnett.training import verify as verifying
from punnett.training.oracles import has_trl
from punnett.training.verify import verify


def test_every_proof_holds_on_a_tiny_base(speaking_base, tmp_path):
    said = []
    found = verify(str(speaking_base), 4, said.append, tmp_path)
    assert found.holds, "\n".join(said)
    names = " ".join(check.name for check in found.checks)
    assert "plain PEFT" in names
    assert "the base's weights" in names
    assert has_trl(), "TRL is the outside oracle and belongs to the dev extra"
    assert "TRL's SFTTrainer, student 0: losses" in names
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_trainer_that_is_off_by_little_is_caught(speaking_base, tmp_path, monkeypatch):
    honest = verifying.train_all

    def nudged(shared, jobs, together):
        trained = honest(shared, jobs, together)
        if together.workers == 1:  # as if being alone had changed the last bit of one weight
            with torch.no_grad():
                for adapter in trained.adapters.values():
                    adapter.flat[0] = torch.nextafter(adapter.flat[0], torch.tensor(1.0))
        return trained

    monkeypatch.setattr(verifying, "train_all", nudged)
    found = verify(str(speaking_base), 3, lambda line: None, tmp_path)
    assert not found.holds
    assert any("alone" in check.name and not check.holds for check in found.checks)
