"""The pair that kdrun makes itself."""

import torch

from kdrun.models.scratch import END, make_model, train_tokenizer

TEXTS = ["Name the character U+2593.", "DARK SHADE", "LATIN SMALL LETTER A"] * 5


def test_any_text_is_encoded_and_decoded_back() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    for text in ["DARK SHADE", "\u2593 \u00e9 \U0001f600", " spaces  and\nlines\n", "\x00\x01"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    assert len(tokenizer) <= 300
    assert tokenizer.eos_token == tokenizer.pad_token == END


def test_the_same_texts_give_the_same_tokenizer_and_the_same_seed_the_same_weights() -> None:
    a, b = (train_tokenizer(TEXTS, vocab_size=300) for _ in range(2))
    assert a.get_vocab() == b.get_vocab()
    make = {"vocab_size": 300, "context": 16, "layers": 1, "width": 8, "heads": 2, "end_id": 0}
    one, same, other = (make_model(**make, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.transformer.wte.weight, other.transformer.wte.weight)


def test_making_a_model_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    make_model(vocab_size=300, context=16, layers=1, width=8, heads=2, end_id=0, seed=1)
    assert torch.equal(before, torch.get_rng_state())
