"""Takes questions, gives whole steps of TRL's GRPOTrainer (generation by transformers, no KL), as a worker of step.py.

The trainer's own loop runs; a callback waits for this side's turn before each step and answers after it.
"""

import tempfile

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from worker import Turns, spread_reward

turns = Turns()
job = turns.job
Q, N, C, T = job["workload"]
tokenizer = AutoTokenizer.from_pretrained(job["model"])
assert [tokenizer(text)["input_ids"] for text in job["texts"]] == job["prompts"], "TRL would train on other prompts"
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
micro = min(job["micro"], Q * N)
assert Q * N % micro == 0, f"--micro {micro} does not divide the {Q * N} samples"


def reward(completion_ids, **_):
    assert all(len(tokens) == T for tokens in completion_ids)
    return [spread_reward(list(tokens)) for tokens in completion_ids]


class Turn(TrainerCallback):
    def on_step_begin(self, *_, **__):
        turns.begin()

    def on_step_end(self, *_, **__):
        turns.end()


with tempfile.TemporaryDirectory() as folder:
    settings = GRPOConfig(
        output_dir=folder,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=Q * N // micro,
        num_generations=N,
        max_completion_length=T,
        max_steps=job["steps"],
        learning_rate=1e-6,
        beta=0.0,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        generation_kwargs={"min_new_tokens": T},  # full length: no end token is drawn before
        bf16=False,  # the model is in the dtype that is measured; no autocast on top
        fp16=False,
        gradient_checkpointing="gradient_checkpointing" in job["settings"],  # TRL's default is on: slower and smaller
    )
    data = datasets.Dataset.from_dict({"prompt": job["texts"]})
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[Turn()]
    )
    turns.ready("trl", "transformers", "torch", threads=torch.get_num_threads())
    trainer.train()
    turns.begin()  # until the parent says that it has enough
