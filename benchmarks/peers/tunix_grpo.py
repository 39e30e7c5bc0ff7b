"""Takes questions, gives whole steps of Tunix's GRPOLearner (vanilla rollout, full fine-tuning, no KL), as a worker of step.py.

The learner's own loop runs; the iterator of its data waits for this side's turn before it hands out each step's questions,
and answers when the learner comes back for more.
"""

import jax
import optax
import tunix_model
from flax import nnx
from tunix.rl import rl_cluster as rl
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout
from worker import Turns, spread_reward

turns = Turns()
job = turns.job
Q, N, C, T = job["workload"]
tokenizer = tunix_model.load_tokenizer(job)
mesh = tunix_model.mesh()
config, actor = tunix_model.load(job["model"], job["dtype"], mesh)
micro = max(min(job["micro"] // N, Q), 1)  # it counts questions; each brings its N samples


def reward(prompts, completions, **_):
    return [spread_reward(tokenizer.encode(text, add_special_tokens=False)) for text in completions]


cluster = rl.RLCluster(
    actor=actor,
    reference=None,
    tokenizer=tokenizer,
    cluster_config=rl.ClusterConfig(
        role_to_mesh={rl.Role.ACTOR: mesh, rl.Role.REFERENCE: mesh, rl.Role.ROLLOUT: mesh},
        rollout_engine="vanilla",
        training_config=rl.RLTrainingConfig(
            actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6)),
            eval_every_n_steps=10**6,
            max_steps=job["steps"] + 1,  # more than there are, so that it comes back after the last one
            mini_batch_size=Q,
            train_micro_batch_size=micro,
            rollout_micro_batch_size=Q,
            compute_logps_micro_batch_size=micro,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=T,
            max_prompt_length=C,
            kv_cache_size=C + T,
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            eos_tokens=[config.vocab_size],  # outside the vocabulary: every response has the full length
        ),
    ),
)
learner = GRPOLearner(
    rl_cluster=cluster, algo_config=GRPOConfig(num_generations=N, num_iterations=1, beta=0.0), reward_fns=reward
)


def finished():
    """Waits for the update that was dispatched last; returns how many there were."""
    jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
    return cluster.actor_trainer.train_steps


def batches():
    for step in range(job["steps"]):
        turns.begin()
        yield {"prompts": job["texts"][step * Q : (step + 1) * Q]}
        updates = finished()
        assert updates == step + 1, f"{updates} updates after {step + 1} batches: the learner runs ahead"
        turns.end()


turns.ready("google-tunix", "jax", "flax", "optax")
learner.train(batches())
turns.begin()  # until the parent says that it has enough
