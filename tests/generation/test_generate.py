"""Generation against one-by-one argmax loops, transformers' own processors, and exact probabilities."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from kdrun.errors import UserError
from kdrun.generation.generate import Generation, Sampling, decode, generate

VOCABULARY = 64
EOS = 0
PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 7, 8], [11, 12], [33, 2, 60, 41, 5], [8, 8]]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For models this small a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    """A tiny GPT-2 with sharp, varied scores (weights x 8), dropout on, left in training mode."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=48)
    config.eos_token_id = config.bos_token_id = None
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model.train()


def written(model, sampling, *, prompts=PROMPTS, eos_id=EOS, pad_id=EOS, batch_size=4, seed=10, advance=None):
    return generate(
        model, prompts, sampling, eos_id=eos_id, pad_id=pad_id, batch_size=batch_size, seed=seed, advance=advance
    )


def argmax_alone(model, prompt, num_new, *, eos_id=EOS, change=lambda ids, scores: scores) -> Generation:
    """The reference: one unpadded prompt, the whole forward again for each token, no cache, no generate."""
    model.eval()
    ids = list(prompt)
    finished = False
    with torch.no_grad():
        for _ in range(num_new):
            scores = model(torch.tensor([ids])).logits[:, -1].float()
            token = int(change(torch.tensor([ids]), scores).argmax())
            if token == eos_id:
                finished = True
                break
            ids.append(token)
    model.train()
    return Generation(ids[len(prompt) :], finished)


def eos_that_greedy_text_contains(model) -> int:
    """An id that comes third in the free greedy text of the first prompt, so that texts of several lengths arise."""
    return argmax_alone(model, PROMPTS[0], 3, eos_id=-1).token_ids[2]


def test_left_padded_greedy_batches_equal_unpadded_argmax_token_for_token(model):
    eos = eos_that_greedy_text_contains(model)
    alone = [argmax_alone(model, prompt, 20, eos_id=eos) for prompt in PROMPTS]
    assert len({len(generation.token_ids) for generation in alone}) > 1  # the batch really holds finished rows
    for batch_size in (1, 4, 6):
        batched = written(model, Sampling(20, temperature=0), eos_id=eos, pad_id=eos, batch_size=batch_size)
        assert batched == alone


def tiny(name: str):
    """A model of another family with sharp scores."""
    torch.manual_seed(1)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.5,
    }  # fmt: skip
    return {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**sizes)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**sizes, sliding_window=5)),
        "qwen2, both kinds of layers": lambda: Qwen2ForCausalLM(
            Qwen2Config(**sizes, use_sliding_window=True, sliding_window=4, max_window_layers=1)
        ),
    }[name]().eval()


def by_transformers(model, prompts, num_new, *, eos_id, **settings) -> list[Generation]:
    """model.generate's greedy texts, each prompt alone."""
    config = GenerationConfig(max_new_tokens=num_new, do_sample=False, eos_token_id=eos_id, pad_token_id=0, **settings)
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        new = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :]
        finished = int(new[-1]) == eos_id
        texts.append(Generation(new.tolist()[: -1 if finished else None], finished))
    return texts


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "mistral", "qwen2, both kinds of layers"])
@pytest.mark.parametrize(
    "settings", [{}, {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2}, {"no_repeat_ngram_size": 6}], ids=str
)
def test_greedy_texts_equal_those_of_generate_token_for_token(model, name, settings):
    subject = model.eval() if name == "gpt2" else tiny(name)
    prompts = [*PROMPTS[:4], [3, 4] * 5, [17] * 7]
    (free,) = by_transformers(subject, prompts[:1], 18, eos_id=None, **settings)
    eos = free.token_ids[6]
    wanted = by_transformers(subject, prompts, 18, eos_id=eos, **settings)
    assert len({len(g.token_ids) for g in wanted}) > 1  # rows leave at several steps
    sampling = Sampling(18, temperature=0, **settings)
    assert written(subject, sampling, prompts=prompts, eos_id=eos, batch_size=4) == wanted


def test_a_model_with_another_state_than_keys_and_values_is_refused():
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, state_size=2)
    with pytest.raises(UserError, match="MambaForCausalLM: generation needs a decoder whose whole state"):
        written(MambaForCausalLM(config), Sampling(2))


def test_eos_is_cut_by_position_whether_pad_is_eos_or_not(model):
    eos = eos_that_greedy_text_contains(model)
    sampling = Sampling(20, temperature=0)
    with_pad_eos = written(model, sampling, eos_id=eos, pad_id=eos)
    with_other_pad = written(model, sampling, eos_id=eos, pad_id=(eos + 1) % VOCABULARY)
    assert with_pad_eos == with_other_pad
    # A prompt may hold EOS itself (documents joined by it): only what comes after the prompt is cut.
    prompt = [eos, 5, eos, eos]
    alone = argmax_alone(model, prompt, 20, eos_id=eos)
    assert written(model, sampling, prompts=[prompt], eos_id=eos, pad_id=eos) == [alone]
    for generation in with_pad_eos:
        assert eos not in generation.token_ids
        assert generation.finished == (len(generation.token_ids) < 20)


def test_text_that_is_cut_by_the_token_limit_is_not_finished(model):
    eos = eos_that_greedy_text_contains(model)
    short, exact = (written(model, Sampling(n, temperature=0), eos_id=eos)[0] for n in (2, 3))
    assert not short.finished
    assert len(short.token_ids) == 2
    assert exact == Generation(short.token_ids, finished=True)  # the third new token is EOS itself


def test_checkpoint_generation_config_does_not_leak(model):
    sampling = Sampling(16, temperature=1.5)
    greedy = Sampling(16, temperature=0)
    clean = written(model, sampling), written(model, greedy)
    own = model.generation_config
    leaking = GenerationConfig(
        top_k=1,
        top_p=0.1,
        repetition_penalty=1.3,
        do_sample=True,
        min_new_tokens=9,
        suppress_tokens=[3, 4, 5],
        num_beams=2,
    )
    model.generation_config = leaking
    try:
        assert (written(model, sampling), written(model, greedy)) == clean
        assert model.generation_config is leaking  # and the model keeps its own afterwards
    finally:
        model.generation_config = own


def test_hidden_top_k_50_is_off():
    """A model with equal scores for all 64 tokens must reach every one of them."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=1, n_positions=48))
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
    generations = written(model, Sampling(40), prompts=[[i] for i in range(40)], eos_id=VOCABULARY + 1, batch_size=40)
    assert {token for generation in generations for token in generation.token_ids} == set(range(VOCABULARY))


def test_same_seed_gives_same_texts_and_another_seed_others(model):
    sampling = Sampling(16, temperature=1.0)
    first = written(model, sampling, seed=10)
    assert written(model, sampling, seed=10) == first
    others = written(model, sampling, seed=20)
    assert all(a != b for a, b in zip(first, others, strict=True))
    # Streams of one seed differ among prompts too: the same prompt twice gives two texts.
    twice = written(model, sampling, prompts=[PROMPTS[0], PROMPTS[0]])
    assert twice[0] != twice[1]


def test_a_seed_of_several_numbers_gives_prompt_i_the_stream_of_all_of_them_and_i():
    """Where all 64 tokens are equally likely, the token is the stream's number times 64."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=1, n_positions=48))
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
    for seed, streams in ((10, [(10, 0), (10, 1)]), ((10, 3), [(10, 3, 0), (10, 3, 1)])):
        found = written(model, Sampling(5), prompts=[[1], [2]], eos_id=-1, seed=seed)
        uniforms = [np.random.default_rng(stream).random(5) for stream in streams]
        assert [g.token_ids for g in found] == [(VOCABULARY * u).astype(int).tolist() for u in uniforms]


def test_sampled_text_does_not_depend_on_batch_size_or_later_prompts(model):
    sampling = Sampling(16, temperature=1.0, top_k=20, top_p=0.95, repetition_penalty=1.2, no_repeat_ngram_size=3)
    whole = written(model, sampling, batch_size=6)
    assert written(model, sampling, batch_size=1) == whole
    assert written(model, sampling, batch_size=4) == whole
    assert written(model, sampling, prompts=PROMPTS[:3], batch_size=2) == whole[:3]


def test_one_prompt_one_token_and_batches_larger_than_the_prompts(model):
    greedy = Sampling(1, temperature=0)
    first = argmax_alone(model, PROMPTS[0], 1, eos_id=-1)
    assert written(model, greedy, prompts=PROMPTS[:1], eos_id=-1, batch_size=50) == [first]
    # EOS as the very first token: an empty text, and its place is free for the next prompt at once.
    eos = first.token_ids[0]
    several = written(
        model, Sampling(6, temperature=0), prompts=[PROMPTS[0]] * 3 + PROMPTS[1:], eos_id=eos, batch_size=2
    )
    assert several[:3] == [Generation([], finished=True)] * 3
    assert several[3:] == [argmax_alone(model, prompt, 6, eos_id=eos) for prompt in PROMPTS[1:]]


def test_a_finished_row_that_waits_to_leave_does_not_run_over_the_last_position(model):
    prompts = [[1] * 40, *([i, 5] for i in range(1, 15))]
    limits = [8, *[5] * 7, *[8] * 7]  # at the 8th token the first row has its last position, and seven others go on
    arguments = {"sampling": Sampling(8, temperature=0), "eos_id": -1, "pad_id": 0, "seed": 0}
    found = generate(model, prompts, batch_size=8, limits=limits, **arguments)
    assert [len(g.token_ids) for g in found] == limits
    assert found[8:] == [argmax_alone(model, prompt, 8, eos_id=-1) for prompt in prompts[8:]]


def test_global_random_state_is_neither_read_nor_changed(model):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = written(model, Sampling(8))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert written(model, Sampling(8)) == first


@pytest.mark.parametrize(("limits", "num_allowed"), [({"top_k": 2}, 2), ({"top_p": 1e-6}, 1)])
def test_top_k_and_top_p_limit_the_first_token(model, limits, num_allowed):
    prompts = [PROMPTS[0]] * 200
    firsts = {
        g.token_ids[0] for g in written(model, Sampling(1, 3.0, **limits), prompts=prompts, eos_id=-1, batch_size=200)
    }
    with torch.no_grad():
        scores = model.eval()(torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert firsts == set(scores.topk(num_allowed).indices.tolist())


def test_repetition_penalty_does_not_see_padding(model):
    """transformers' own processor, alone and unpadded, is the reference; pad = eos is where padding would show."""
    from transformers import RepetitionPenaltyLogitsProcessor

    eos = eos_that_greedy_text_contains(model)
    penalise = RepetitionPenaltyLogitsProcessor(1.3)
    alone = [argmax_alone(model, prompt, 16, eos_id=eos, change=penalise) for prompt in PROMPTS]
    batched = written(
        model, Sampling(16, temperature=0, repetition_penalty=1.3), eos_id=eos, pad_id=eos, batch_size=len(PROMPTS)
    )
    assert batched == alone
    assert batched != written(model, Sampling(16, temperature=0), eos_id=eos, pad_id=eos)


def test_no_ngram_of_the_banned_size_comes_twice(model):
    for sampling in (Sampling(30, temperature=0, no_repeat_ngram_size=2), Sampling(30, 0.5, no_repeat_ngram_size=2)):
        for prompt, generation in zip(PROMPTS, written(model, sampling), strict=True):
            ids = prompt + generation.token_ids
            pairs = Counter(itertools.pairwise(ids))
            own = Counter(itertools.pairwise(prompt))
            assert all(count <= max(1, own[pair]) for pair, count in pairs.items())


def test_modes_of_all_submodules_come_back(model):
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    written(model, Sampling(4, temperature=0))
    assert [module.training for module in model.modules()] == modes
    model.train()


def test_modes_come_back_after_a_failure(model):
    def fail(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(model, Sampling(2), advance=fail)
    assert model.training
    assert not model.lm_head._forward_pre_hooks
    assert not model.lm_head._forward_hooks


def test_advance_counts_every_text_and_every_token_once(model):
    calls: list[tuple[int, int]] = []
    eos = eos_that_greedy_text_contains(model)
    sampling = Sampling(9, temperature=0)
    generations = written(model, sampling, eos_id=eos, batch_size=4, advance=lambda *counts: calls.append(counts))
    assert sum(num_prompts for num_prompts, _ in calls) == len(PROMPTS)
    assert sum(num_tokens for _, num_tokens in calls) == sum(len(g.token_ids) for g in generations)
    assert all(num_tokens <= 4 for _, num_tokens in calls)


def test_context_overrun_is_refused_before_generating(model):
    prompts = [[1] * 40, [2]]
    assert len(written(model, Sampling(8), prompts=prompts)) == 2  # 40 + 8 = 48 positions just fit
    with pytest.raises(UserError, match=r"eval\.max_new_tokens=9: .*40 tokens.*48 positions.*eval\.max_new_tokens=8"):
        written(model, Sampling(9), prompts=prompts, advance=lambda *_: pytest.fail("generated"))
    limits = {"limits": [8, 9], "eos_id": -1, "pad_id": 0, "batch_size": 2, "seed": 0}
    texts = generate(model, prompts, Sampling(9), **limits)  # what is asked of each prompt counts
    assert [len(text.token_ids) for text in texts] == [8, 9]
    with pytest.raises(UserError, match="at most 0 new tokens fit; drop"):
        written(model, Sampling(9), prompts=[[1] * 60])


def test_nan_logits_stop_the_generation(model):
    broken = GPT2LMHeadModel(model.config)
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(float("nan"))
    for temperature in (0, 1):
        with pytest.raises(FloatingPointError, match="NaN"):
            written(broken, Sampling(2, temperature))


def test_no_prompts_give_no_texts_and_empty_prompts_are_an_error(model):
    assert written(model, Sampling(4), prompts=[]) == []
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        written(model, Sampling(4), prompts=[[1], []])
    with pytest.raises(ValueError, match="limits: 0 is below 1"):
        generate(model, [[1]], Sampling(4), eos_id=0, pad_id=0, batch_size=1, seed=0, limits=[0])


def test_decoding_skips_special_tokens_keeps_inner_spaces_and_strips():
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {"<end>": 0, " ": 1, "it": 2, "'s": 3, ".": 4}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", clean_up_tokenization_spaces=True)
    generations = [Generation([1, 2, 1, 3, 1, 4, 0, 1], finished=False), Generation([], finished=True)]
    assert decode(generations, tokenizer) == ["it 's .", ""]
