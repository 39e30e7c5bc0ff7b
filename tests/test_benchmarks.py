"""The benchmarks: their counts against sums by hand, and every script from end to end at sizes that take seconds.

Peers take part where JAXSELFTRAIN_TRL and JAXSELFTRAIN_TUNIX name the interpreters of their environments.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from runs import environment, make_model

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import machine  # noqa: E402
from ours import make_config  # noqa: E402
from shapes import SHAPES, word_tokenizer  # noqa: E402
from workloads import WORKLOADS, questions, workload  # noqa: E402

from jaxselftrain import counts  # noqa: E402
from jaxselftrain.model.architecture import Architecture  # noqa: E402
from jaxselftrain.model.tokenizer import load_tokenizer  # noqa: E402

SMALL = Architecture(
    "LlamaForCausalLM", V=11, D=4, F=6, H=2, G=1, K=2, L=3, rope_theta=1e4, norm_eps=1e-5, max_positions=64, tied=True
)
LEAN = ["model.weights_dtype=bfloat16", "optimizer.state_dtype=bfloat16"]


def config(*settings, workload=(2, 4, 5, 3), dtype="float32"):
    return make_config(model="unused", dtype=dtype, workload=workload, settings=settings)


def script(name: str, *arguments: str) -> tuple[str, str]:
    """What a script prints, and what it says meanwhile."""
    given = environment() | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, BENCHMARKS / name, *arguments], env=given, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def rows(printed: str, title: str) -> list[list[str]]:
    """The cells of the table under a title, without its head."""
    table = printed[printed.index(f"**{title}") :].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(make_model(tmp_path_factory.mktemp("model") / "model"))


def brute_force(a, prompts, samples, C, T):
    """(operations, prompts' keys read, own keys read) of layers, token by token."""
    operations = prompt_keys = own_keys = 0
    for _ in range(prompts):
        for token in range(C):
            operations += matrices(a) + pairs(a, token + 1)
    for _ in range(samples):
        for token in range(1, T):  # the last one is fed to nobody
            operations += matrices(a) + pairs(a, C + token)
            prompt_keys, own_keys = prompt_keys + C, own_keys + token
    return operations, prompt_keys, own_keys


def matrices(a):
    q, k_and_v, o, mlp = a.D * a.H * a.K, 2 * a.D * a.G * a.K, a.H * a.K * a.D, 3 * a.D * a.F
    return 2 * a.L * (q + k_and_v + o + mlp)


def pairs(a, keys):
    return a.L * a.H * keys * (2 * a.K + 2 * a.K)  # a score, and its value's part


def test_operations_are_those_of_every_token_by_itself():
    a, Q, N, C, T = SMALL, 2, 4, 5, 3
    logits = 2 * a.D * a.V
    layers, _, _ = brute_force(a, Q, Q * N, C, T)
    sampling = counts.prefill(a, Q=Q, C=C, itemsize=4) + counts.decode(a, Q=Q, N=N, C=C, T=T, W=N, itemsize=4)
    assert sampling.operations == layers + logits * (Q + Q * N * (T - 1))
    update = counts.update(a, Q=Q, M=N, C=C, T=T, config=config())
    assert update.operations == 3 * (layers + logits * Q * N * T)


def test_bytes_by_hand():
    a, Q, N, C, T = SMALL, 2, 4, 5, 3
    assert counts.layer_weights(a) == 3 * (2 * 4 * 2 * 2 + 2 * 4 * 1 * 2 + 3 * 4 * 6) == 360
    assert counts.parameters(a) == 11 * 4 + 4 + 2 * 3 * 4 + 360 == 432 == counts.moved_weights(a)
    assert counts.cache_bytes(a, 2) == 2 * 3 * 1 * 2 * 2 == 24
    assert counts.prefill(a, Q=Q, C=C, itemsize=2).bytes == 432 * 2 + 10 * 24 + 2 * 11 * 4
    own = 8 * (1 + 2) * 24  # each response's second and third token see one and two of its own
    for W, steps in ((4, 2), (2, 5), (3, 5)):  # rows that take turns spend a step on a response's first token
        got = counts.decode(a, Q=Q, N=N, C=C, T=T, W=W, itemsize=2)
        assert got.bytes == steps * (432 * 2 + 10 * 24) + own + 8 * 2 * 11 * 4, W
    lean = config(*LEAN, "update.micro_batches=2", dtype="bfloat16")
    passes, optimizer, logits = 2 * 2 * 432 * 2, 432 * (4 + 4 + 2 + 2 + 4 * 2), 8 * 3 * 11 * 4
    assert counts.update(a, Q=Q, M=N, C=C, T=T, config=lean).bytes == passes + optimizer + logits


def test_an_untied_embedding_is_looked_up_and_not_read():
    untied = replace(SMALL, tied=False)
    assert counts.parameters(untied) == 432 + 44 and counts.moved_weights(untied) == 432
    assert counts.moved_weights(SHAPES["qwen2.5-7b"]) / 1e9 == pytest.approx(7.07, abs=0.01)
    assert counts.parameters(SHAPES["qwen2.5-7b"]) == 7_615_616_512  # as its model card has it: 7.61 B
    assert counts.parameters(SHAPES["qwen2.5-1.5b"]) == 1_543_714_304  # 1.54 B
    assert counts.parameters(SHAPES["smollm2-135m"]) == 134_515_008


def test_memory_by_hand():
    a, Q, N, C, T = SMALL, 2, 4, 5, 3
    sizes = dict(Q=Q, N=N, M=N, C=C, T=T, W=2)
    need = counts.memory(a, **sizes, config=config("update.micro_batches=2", dtype="bfloat16"))
    assert need["always"] == {"weights": 432 * 4, "moments": 432 * 8, "weights in the compute dtype": 432 * 2}
    assert list(need["sampling"].values()) == [10 * 24, 2 * 2 * 2 * 24, 4 * 11 * 4]
    assert list(need["update"].values()) == [432 * 4, (5 + 4 * 3) * 3 * 4 * 2, 2 * 12 * 11 * 4]
    lean = counts.memory(a, **sizes, config=config(*LEAN, dtype="bfloat16"))
    assert list(lean["always"].values()) == [432 * 2, 432 * 4, 0]


def test_shared_prompts_save_what_the_docs_say():
    text = (ROOT / "docs" / "performance.md").read_text()
    for name, (Q, N, C, T) in WORKLOADS.items():
        repeated, shared = (counts.tokens(Q=Q, N=N, C=C, T=T, shared=shared) for shared in (False, True))
        assert f"| {name} | {repeated:,} | {shared:,} | {repeated / shared:.1f} |" in text


def test_workloads_and_their_questions(model):
    assert workload("W1") == WORKLOADS["W1"] and workload("2,3,4,5") == (2, 3, 4, 5)
    for wrong in ("W9", "1,2,3", "1,2,3,0", "a,b,c,d"):
        with pytest.raises(Exception, match=re.escape(wrong)):
            workload(wrong)
    tokenizer = load_tokenizer(model, revision=None)
    texts, tokens = questions(tokenizer, count=5, C=20)
    assert len(set(texts)) == 5 and {len(part) for part in tokens} == {20}
    assert [tokenizer.encode(text) for text in texts] == tokens


def test_the_made_up_tokenizer_has_bytes_and_words():
    tokenizer = word_tokenizer(SHAPES["tiny"].V)
    assert tokenizer.vocab_size == len(tokenizer.token_bytes()) == 512 and tokenizer.eos_ids == ()
    assert tokenizer.decode([300, 301]).split() == ["bs", "bt"] and tokenizer.decode(tokenizer.encode("7 + 1")) == "7 + 1"


def compared(name: str, model: str, *more: str) -> list[str]:
    """The sides in a comparison's table, run without a peer; checks that each peer is said to be left out."""
    printed, said = script(name, "--workload", "2,4,16,5", "--model", model, "--repetitions", "1", *more)
    table = rows(printed, "2 questions x 4 samples, 16 prompt + 5 response tokens, float32")
    assert all(float(row[1]) > 0 for row in table)
    peers = ["transformers" if name == "sampling.py" else "TRL", "Tunix"]
    assert [line.split()[0] for line in said.splitlines() if "is left out" in line] == peers
    return [row[0] for row in table]


def test_sampling_compares_variants_of_ours(model):
    sides = ["jaxselftrain", "jaxselftrain rollout.rows=2 rollout.top_k=5"]
    assert compared("sampling.py", model, "--variant", "rollout.rows=2 rollout.top_k=5") == sides


def test_a_checkpoint_has_its_price():
    printed, _ = script("checkpoints.py", "--shape", "tiny", "--repetitions", "1")
    cells = dict(rows(printed, "a checkpoint of 107 k parameters"))
    assert cells["in memory"] == "1.35 MB" and float(cells["the loop waits for a save"].removesuffix(" s")) > 0


@pytest.mark.parametrize("name", ["step.py", pytest.param("memory.py", marks=pytest.mark.long)])
def test_whole_steps_of_ours_alone(name, model):
    assert compared(name, model, "--set", "update.micro_batches=2") == ["jaxselftrain"]


def test_a_peer_needs_a_folder_and_a_side_that_fails_is_quoted(tmp_path):
    def outcome(*arguments):
        command = [sys.executable, BENCHMARKS / "sampling.py", "--workload", "1,2,16,2", "--repetitions", "1", *arguments]
        return subprocess.run(command, env=environment(), capture_output=True, text=True)

    assert "model_folder.py" in outcome("--trl", sys.executable).stderr
    made = make_model(tmp_path / "model")
    done = outcome("--model", str(made), "--set", "rollout.rows=7")
    assert done.returncode and "rollout.rows = 7 must be a multiple" in done.stderr
    dead = outcome("--model", str(made), "--trl", "/bin/false")  # the others are measured all the same
    assert not dead.returncode and "| jaxselftrain" in dead.stdout and "transformers: it ended with 1." in dead.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("sampling.py", "--variant", "vote.samples=4"), "error: vote.samples=4 would give our side other work"),
        (("step.py", "--repetitions", "0"), "argument --repetitions: 0 is not a whole number from 1 on"),
        (("lanes.py", "--rows", "32"), "error: --rows 32 must be a multiple of the 64 questions"),
    ],
)
def test_bad_options_are_one_sentence(arguments, told):
    command = [sys.executable, BENCHMARKS / arguments[0], *arguments[1:]]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("option", ["trl", "tunix"])
@pytest.mark.parametrize("name", ["sampling.py", "step.py", "memory.py"])
def test_peers_take_part(name, option, model):
    python = os.environ.get(f"JAXSELFTRAIN_{option.upper()}")
    if python is None:
        pytest.skip(f"JAXSELFTRAIN_{option.upper()} names no interpreter")
    micro = [] if name == "sampling.py" else ["--micro", "4"]
    printed, _ = script(name, "--workload", "2,4,16,5", "--model", model, "--repetitions", "1", f"--{option}", python, *micro)
    ours, peer = rows(printed, "2 questions")
    assert ours[0] == "jaxselftrain" and peer[0] in ("transformers", "TRL", "Tunix") and float(peer[1]) > 0


def test_roofline_reports_every_share(model):
    printed, _ = script("roofline.py", "--workload", "2,4,16,5", "--model", model, "--repetitions", "1")
    assert len(rows(printed, "cpu: measured limits")) == 2
    shares = rows(printed, "2 questions x 4 samples, 16 prompt + 5 response tokens: LlamaForCausalLM")
    assert [row[0] for row in shares] == ["sampling", "update"] and all(float(row[1]) > 0 for row in shares)
    assert "The device waits" in printed
    assert "the compiled step's own account" in printed and "peak, host" in printed


def test_roofline_counts_and_reads_a_run(model, tmp_path):
    printed, _ = script("roofline.py", "--counts", "--workload", "W1", "--random", "smollm2-135m")
    table = rows(printed, "LlamaForCausalLM")
    assert table[0][1:4] == ["7,040", "1,280", "5.5"]
    lines = [{"step": i, "device_seconds": 3.0, "voter_seconds": 0.75, "host_seconds": 0.25} for i in range(1, 4)]
    lines[0]["device_seconds"] = 99.0  # compilation
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed, _ = script("roofline.py", "--run", str(tmp_path))
    assert rows(printed, str(tmp_path))[-1] == ["idle", "2.000", "25.0%"]


def test_data_sheets_are_found_by_the_names_that_jax_gives():
    assert machine.data_sheet("NVIDIA H200") == (989e12, 4.8e12) and machine.data_sheet("TPU v5 lite") == (197e12, 0.82e12)
    assert machine.data_sheet("TPU v5p") == (459e12, 2.77e12) and machine.data_sheet("cpu") is None


@pytest.mark.long
def test_gpu_script_from_end_to_end_at_tiny_size(tmp_path):
    given = environment() | {"SIZE": "tiny", "OUT": str(tmp_path), "PYTHON": sys.executable, "REPETITIONS": "1"}
    done = subprocess.run([BENCHMARKS / "gpu.sh"], env=given, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gpu-tiny.md").read_text() == done.stdout
    table = rows(done.stdout, "4 questions x 4 samples, 24 prompt + 40 response tokens: LlamaForCausalLM")
    assert [row[0] for row in table] == ["sampling", "update"]


def test_gpu_script_names_a_size_it_does_not_have(tmp_path):
    given = environment() | {"SIZE": "70b", "OUT": str(tmp_path)}
    done = subprocess.run([BENCHMARKS / "gpu.sh"], env=given, capture_output=True, text=True)
    assert done.returncode == 2 and "SIZE=70b is none of" in done.stderr


@pytest.mark.long
def test_compile_seconds_are_shown_for_every_depth(model, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"question": "{i}"}}\n' for i in range(4)))
    settings = {
        "model": {"path": model},
        "questions": {"source": "jsonl", "path": str(questions)},
        "rollout": {"questions": 2, "max_tokens": 4},
        "vote": {"samples": 2},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    printed, _ = script("compile.py", str(tmp_path / "config.yaml"), "--layers", "1,3")
    table = rows(printed, "compiling")
    assert [row[0] for row in table] == ["1", "3"] and all(float(row[3]) > 0 for row in table)
