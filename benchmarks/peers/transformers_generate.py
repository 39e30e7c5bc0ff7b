"""Takes prompts as tokens, gives N sampled responses each by transformers' `model.generate`, as a worker of sampling.py."""

import torch
from transformers import AutoModelForCausalLM
from worker import Turns

turns = Turns()
job = turns.job
Q, N, C, T = job["workload"]
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).eval()
ids = torch.tensor(job["prompts"][:Q])
assert ids.shape == (Q, C)
settings = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "num_return_sequences": N,
    "max_new_tokens": T,
    "min_new_tokens": T,  # every response has the full length: no end token is drawn before
    "pad_token_id": 0,
}


def generate():
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert out.shape == (Q * N, C + T) and (out[::N, :C] == ids).all()


torch.manual_seed(0)
turns.ready("transformers", "torch", threads=torch.get_num_threads())
turns.serve(generate)
