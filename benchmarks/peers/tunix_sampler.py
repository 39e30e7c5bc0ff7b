"""Takes prompts, gives N sampled responses each by Tunix's vanilla sampler, as a worker of sampling.py.

The sampler has no number of samples a prompt: it gets each prompt N times, as Tunix's own learners do it.
"""

from itertools import count

import tunix_model
from tunix.generate import sampler as tunix
from worker import Turns

turns = Turns()
job = turns.job
Q, N, C, T = job["workload"]
tokenizer = tunix_model.load_tokenizer(job)
config, model = tunix_model.load(job["model"], job["dtype"], None)
cache = tunix.CacheConfig(
    cache_size=C + T, num_layers=config.num_layers, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim
)
sampler = tunix.Sampler(model, tokenizer, cache)
texts = [text for text in job["texts"][:Q] for _ in range(N)]
seeds = count()


def generate():
    out = sampler(
        texts,
        max_generation_steps=T,
        max_prompt_length=C,
        temperature=1.0,
        top_p=1.0,
        seed=next(seeds),
        eos_tokens=[config.vocab_size],  # outside the vocabulary: every response has the full length
    )
    assert [len(tokens) for tokens in out.tokens] == [T] * (Q * N)


turns.ready("google-tunix", "jax", "flax")
turns.serve(generate)
