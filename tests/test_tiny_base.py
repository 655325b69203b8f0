"""The tiny base of the fixtures is what it says: a whole Llama with a chat template that punnett can train on."""

from pathlib import Path

from punnett.bases import find_base, load_tokenizer
from punnett.chat import ChatFormat
from punnett.spec.prompt import Message


def test_the_tiny_base_loads_without_a_missing_or_unknown_weight(tiny_base: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model, about = LlamaForCausalLM.from_pretrained(tiny_base, output_loading_info=True)
    assert (set(about["missing_keys"]), set(about["unexpected_keys"]), set(about["mismatched_keys"])) == (set(), set(), set())
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.vocab_size) == (2, 32, len(load_tokenizer(str(tiny_base))))
    assert torch.isfinite(model(torch.arange(5)[None]).logits).all()


def test_its_tokenizer_gives_every_text_back(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_base))
    text = "In the year 2026, naïve 日本 🐚\n\t the end"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_its_template_is_chatml_and_ends_turns_with_the_end_token(tiny_base: Path) -> None:
    chat = ChatFormat(load_tokenizer(str(tiny_base)))
    chat.check()
    ids = chat.prompt_ids((Message(role="user", content="Hello."),), "Be brief.")
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"
    assert chat.tokenizer.decode(ids) == expected
    assert chat.end_of_turn_id == chat.tokenizer.eos_token_id


def test_it_is_a_base_by_its_path(tiny_base: Path, own_models_folder: Path) -> None:
    base = find_base(str(tiny_base))
    assert (base.name, base.location) == ("tiny-base", str(tiny_base))
    assert base == find_base("tiny-base", beside=tiny_base.parent)
