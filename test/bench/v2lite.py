# Part of moec, under the Apache License v2.0 with LLVM Exceptions.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A random checkpoint of DeepSeek-V2-Lite's widths: write it, and measure moec on it.

    python test/bench/v2lite.py write --layers 4 DIR
    python test/bench/v2lite.py gguf DIR OUT.gguf --type q4_0
    python test/bench/v2lite.py run DIR [--threads 1,2]
    python test/bench/v2lite.py compile [--repeats 3]

`run` compiles with `moec compile`, then times prefill and decode through the Python module, each the
median of several repetitions, and prints the bytes a token must read and the rate that reading them
alone would allow, measured in the same run.

`gguf` writes the same checkpoint for llama.cpp and ik_llama.cpp, for compare.py: every matrix in one type, `q4_0`, `q8_0` or
`bf16`, norms and routers in f32, kv_b_proj split into its halves. It needs the PyPI package gguf.

`compile` times what a compile does besides weights, for all 27 layers at -O3: import, passes and lowering, then
the code of each CPU level. Its checkpoint has headers and holes and is gone afterwards.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("MOEC_BUILD_DIR", ROOT / "build"))
sys.path.insert(0, str(ROOT / "test" / "e2e"))

import sparse_checkpoint  # noqa: E402
from checkpoints import bf16_to_float, to_bf16_bits  # noqa: E402

CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "n_shared_experts": 2, "n_routed_experts": 64, "routed_scaling_factor": 1.0,
    "kv_lora_rank": 512, "q_lora_rank": None, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
    "topk_method": "greedy", "n_group": 1, "topk_group": 1, "num_experts_per_tok": 6, "moe_layer_freq": 1,
    "first_k_dense_replace": 1, "norm_topk_prob": False, "scoring_func": "softmax", "hidden_act": "silu",
    "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False,
    "rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
    "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
    "bos_token_id": 100000, "eos_token_id": 100001, "torch_dtype": "bfloat16",
}  # fmt: skip

CPU_LEVELS = ("x86-64-v4-vnni", "x86-64-v4", "x86-64-v3-vnni", "x86-64-v3", "aarch64-i8mm", "aarch64-dotprod", "aarch64")


def layer_tensors(layer: int) -> dict[str, tuple[int, ...]]:
    c, prefix = CONFIG, f"model.layers.{layer}."
    heads, hidden = c["num_attention_heads"], c["hidden_size"]
    key = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (heads * key, hidden),
        "self_attn.kv_a_proj_with_mqa.weight": (c["kv_lora_rank"] + c["qk_rope_head_dim"], hidden),
        "self_attn.kv_a_layernorm.weight": (c["kv_lora_rank"],),
        "self_attn.kv_b_proj.weight": (heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"]),
        "self_attn.o_proj.weight": (hidden, heads * c["v_head_dim"]),
    }

    def ffn(name: str, width: int) -> None:
        shapes[f"mlp.{name}gate_proj.weight"] = (width, hidden)
        shapes[f"mlp.{name}up_proj.weight"] = (width, hidden)
        shapes[f"mlp.{name}down_proj.weight"] = (hidden, width)

    if layer < c["first_k_dense_replace"]:
        ffn("", c["intermediate_size"])
    else:
        shapes["mlp.gate.weight"] = (c["n_routed_experts"], hidden)
        for expert in range(c["n_routed_experts"]):
            ffn(f"experts.{expert}.", c["moe_intermediate_size"])
        ffn("shared_experts.", c["n_shared_experts"] * c["moe_intermediate_size"])
    return {prefix + name: shape for name, shape in shapes.items()}


def write(directory: Path, layers: int, seed: int) -> None:
    """Linears are normal with deviation 0.02 times a log-normal factor for each output row, as trained
    weights have rows of different size; norms lie around 1. One shard a layer, one for the rest."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(CONFIG, num_hidden_layers=layers), indent=1) + "\n")
    vocab, hidden = CONFIG["vocab_size"], CONFIG["hidden_size"]
    shards = [layer_tensors(layer) for layer in range(layers)]
    shards.append({"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)})
    random = np.random.Generator(np.random.SFC64(seed))
    weight_map, total = {}, 0
    for index, shapes in enumerate(shards):
        name = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        header, offset = {}, 0
        for tensor, shape in shapes.items():
            size = 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 64)
        with open(directory / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for shape in shapes.values():
                x = random.standard_normal(shape, np.float32)
                if len(shape) == 1:
                    x = 1 + 0.1 * x
                else:
                    x *= (0.02 * np.exp(0.3 * random.standard_normal((shape[0], 1)))).astype(np.float32)
                file.write(to_bf16_bits(x).tobytes())
        total += offset
        print(f"{name}: {offset / 2**30:.2f} GiB", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


class Checkpoint:
    """What `write` wrote, read tensor by tensor."""

    def __init__(self, directory: Path):
        self.places = {}
        for file in sorted(directory.glob("*.safetensors")):
            with open(file, "rb") as shard:
                size = int.from_bytes(shard.read(8), "little")
                header = json.loads(shard.read(size))
            self.places |= {name: (file, 8 + size + t["data_offsets"][0], t["shape"]) for name, t in header.items()}

    def read(self, name: str) -> np.ndarray:
        file, offset, shape = self.places[name]
        return bf16_to_float(np.memmap(file, np.uint16, "r", offset, tuple(shape)))


def gguf_tensors(config: dict, checkpoint: Checkpoint):
    """(name in GGUF, shape, whether it is quantized, parts in order) of each tensor; parts are made when called."""
    heads, nope, value = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    rank, hidden, experts = config["kv_lora_rank"], config["hidden_size"], config["n_routed_experts"]

    def plain(name: str, source: str):
        shape = tuple(checkpoint.places[source][2])
        return name + ".weight", shape, len(shape) > 1 and "ffn_gate_inp" not in name, [lambda: checkpoint.read(source)]

    yield plain("token_embd", "model.embed_tokens.weight")
    yield plain("output_norm", "model.norm.weight")
    yield plain("output", "lm_head.weight")
    for layer in range(config["num_hidden_layers"]):
        block, source = f"blk.{layer}.", f"model.layers.{layer}."
        for name, of in (
            ("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("attn_q", "self_attn.q_proj"),
            ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"), ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
            ("attn_output", "self_attn.o_proj"),
        ):  # fmt: skip
            yield plain(block + name, source + of + ".weight")

        def kv_b(source: str = source) -> np.ndarray:
            return checkpoint.read(source + "self_attn.kv_b_proj.weight").reshape(heads, nope + value, rank)

        yield block + "attn_k_b.weight", (heads, rank, nope), True, [lambda b=kv_b: b()[:, :nope].transpose(0, 2, 1)]
        yield block + "attn_v_b.weight", (heads, value, rank), True, [lambda b=kv_b: b()[:, nope:]]
        projections = ("gate", "up", "down")
        if layer < config["first_k_dense_replace"]:
            for projection in projections:
                yield plain(block + "ffn_" + projection, f"{source}mlp.{projection}_proj.weight")
            continue
        yield plain(block + "ffn_gate_inp", source + "mlp.gate.weight")
        for projection in projections:
            yield plain(f"{block}ffn_{projection}_shexp", f"{source}mlp.shared_experts.{projection}_proj.weight")
            width = config["moe_intermediate_size"]
            shape = (experts, hidden, width) if projection == "down" else (experts, width, hidden)
            yield f"{block}ffn_{projection}_exps.weight", shape, True, [
                lambda name=f"{source}mlp.experts.{e}.{projection}_proj.weight": checkpoint.read(name)
                for e in range(experts)
            ]


def write_gguf(directory: Path, out: Path, type_name: str) -> None:
    import gguf

    config = json.loads((directory / "config.json").read_text())
    kind = gguf.GGMLQuantizationType[type_name.upper()]
    file_type = {"q4_0": "MOSTLY_Q4_0", "q8_0": "MOSTLY_Q8_0", "bf16": "MOSTLY_BF16"}[type_name]
    writer = gguf.GGUFWriter(out, "deepseek2")
    writer.add_name(directory.name)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    # Attention in the absorbed form is one key-value head as wide as the latent and the rotated part.
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(config["q_lora_rank"] or 0)
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(config["kv_lora_rank"] + config["qk_rope_head_dim"])
    writer.add_value_length(config["kv_lora_rank"])
    writer.add_key_length_mla(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_value_length_mla(config["v_head_dim"])
    scaling = config["rope_scaling"]
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_tokenizer_model("none")

    float32 = gguf.GGMLQuantizationType.F32
    tensors = list(gguf_tensors(config, Checkpoint(directory)))
    for name, shape, quantized, _ in tensors:
        to = kind if quantized else float32
        row = int(np.prod(gguf.quant_shape_to_byte_shape((shape[-1],), to)))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), int(np.prod(shape[:-1])) * row, raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, quantized, parts in tensors:
        to, pieces = kind if quantized else float32, []
        for part in parts:
            rows = part().reshape(-1, shape[-1])
            for first in range(0, len(rows), 8192):
                pieces.append(gguf.quantize(np.ascontiguousarray(rows[first : first + 8192]), to).reshape(-1).view(np.uint8))
        writer.write_tensor_data(np.concatenate(pieces))
        print(name, *shape, to.name, flush=True)
    writer.close()


def compile_artifact(model: Path, artifact: Path, max_memory: str) -> dict:
    """Time and peak resident memory of `moec compile`, as the kernel accounts them."""
    command = [BUILD / "bin" / "moec", "compile", model, "-o", artifact, "--max-memory", max_memory]
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit("v2lite.py: moec compile failed")
    size = sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
    return {"seconds": time.monotonic() - start, "peak_bytes": usage.ru_maxrss * 1024, "artifact_bytes": size}


def read_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory, each its own gigabyte."""
    from concurrent.futures import ThreadPoolExecutor

    data = [np.ones(1 << 27, np.float64) for _ in range(threads)]
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(np.max, data))
            rates.append(threads * data[0].nbytes / (time.perf_counter() - start))
    return statistics.median(rates)


def decode_bytes(artifact: Path) -> int:
    """Weight bytes that one decoded token reads: everything but the embedding and the experts not chosen."""
    done = subprocess.run([BUILD / "bin" / "moec", "inspect", artifact, "--json"], capture_output=True, text=True, check=True)
    total = 0
    for weight in json.loads(done.stdout)["weights"]:
        if "embed_tokens" in weight["name"]:
            continue
        share = CONFIG["num_experts_per_tok"] / CONFIG["n_routed_experts"] if ".mlp.experts." in weight["name"] else 1
        total += int(weight["bytes"] * share)
    return total


def step_seconds(model, tokens: np.ndarray, start: int) -> float:
    positions = np.arange(start, start + len(tokens), dtype=np.int32)
    begin = time.perf_counter()
    model.step(tokens, positions, np.zeros(len(tokens), np.int32), np.array([len(tokens) - 1], np.int32))
    return time.perf_counter() - begin


def machine() -> str:
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    return f"{date.today()}, {cpu}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}"


def compile_times(repeats: int) -> None:
    """Stages that print, each the median of several runs of the whole command; all need what the program needs."""
    with tempfile.TemporaryDirectory() as directory:
        model, out = Path(directory) / "v2-lite", Path(directory) / "out"
        sparse_checkpoint.write(CONFIG, model, shards=4)

        def seconds(*options: str) -> float:
            times = []
            for _ in range(repeats):
                start = time.monotonic()
                subprocess.run([BUILD / "bin" / "moec", "compile", model, "-O3", "-o", out, *options], check=True)
                times.append(time.monotonic() - start)
            return statistics.median(times)

        program = seconds("--emit=exec")
        launches = out.read_text().count("exec.launch ")
        code = {level: seconds("--emit=asm", "--level", level) - program for level in CPU_LEVELS}
    print(f"### DeepSeek-V2-Lite, all {CONFIG['num_hidden_layers']} layers at -O3, without weights\n\n{machine()}\n")
    print(f"`python test/bench/v2lite.py compile --repeats {repeats}`\n\n| | |\n| --- | --- |")
    print(f"| import, passes, lowering: {launches} launches | {program:.2f} s |")
    for level, time_taken in code.items():
        print(f"| code for {level} | {time_taken:.2f} s |")
    print(f"| together | {program + sum(code.values()):.2f} s |")


def run(directory: Path, threads: list[int], prompt: int, count: int, repeats: int, max_memory: str) -> None:
    sys.path.insert(0, str(BUILD / "python"))
    import moec

    artifact = directory.parent / (directory.name + ".moec")
    compiled = compile_artifact(directory, artifact, max_memory)
    layers = json.loads((directory / "config.json").read_text())["num_hidden_layers"]
    read = decode_bytes(artifact)
    print(f"### DeepSeek-V2-Lite widths, {layers} layers, bf16 weights, f32 activations\n")
    print(f"{machine()}\n")
    print(f"`python test/bench/v2lite.py run DIR --threads {','.join(map(str, threads))}`\n")
    print("| compile | |\n| --- | --- |")
    print(f"| time | {compiled['seconds']:.1f} s |")
    print(f"| peak resident memory, `--max-memory {max_memory}` | {compiled['peak_bytes'] / 2**20:.0f} MiB |")
    print(f"| artifact | {compiled['artifact_bytes'] / 2**30:.2f} GiB |\n")
    print(f"| threads | prefill {prompt}, tok/s | decode {count}, tok/s | GB/s read | limit: memory read here, GB/s | of the limit |")
    print("| --- | --- | --- | --- | --- | --- |")
    random = np.random.default_rng(1)
    for number in threads:
        model = moec.load(str(artifact), threads=number)
        step_seconds(model, random.integers(0, 1000, prompt).astype(np.int32), 0)  # warm up: touch the weights
        prefill = statistics.median(
            prompt / step_seconds(model, random.integers(0, 100000, prompt).astype(np.int32), 0) for _ in range(repeats)
        )
        rates = []
        bandwidth = []
        for _ in range(repeats):
            bandwidth.append(read_bandwidth(number))
            step_seconds(model, random.integers(0, 100000, 8).astype(np.int32), 0)
            times = [step_seconds(model, random.integers(0, 100000, 1).astype(np.int32), 8 + i) for i in range(count)]
            rates.append(1 / statistics.median(times))
        decode, limit = statistics.median(rates), statistics.median(bandwidth)
        print(f"| {number} | {prefill:.1f} | {decode:.1f} | {decode * read / 1e9:.1f} | {limit / 1e9:.1f} | {100 * decode * read / limit:.0f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("write")
    writer.add_argument("directory", type=Path)
    writer.add_argument("--layers", type=int, default=4)
    writer.add_argument("--seed", type=int, default=1)
    converter = commands.add_parser("gguf")
    converter.add_argument("directory", type=Path)
    converter.add_argument("out", type=Path)
    converter.add_argument("--type", choices=("q4_0", "q8_0", "bf16"), default="q4_0")
    runner = commands.add_parser("run")
    runner.add_argument("directory", type=Path)
    runner.add_argument("--threads", default="1,2")
    runner.add_argument("--prompt", type=int, default=512)
    runner.add_argument("--count", type=int, default=32)
    runner.add_argument("--repeats", type=int, default=3)
    runner.add_argument("--max-memory", default="1GiB")
    timer = commands.add_parser("compile")
    timer.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.command == "write":
        write(options.directory, options.layers, options.seed)
    elif options.command == "gguf":
        write_gguf(options.directory, options.out, options.type)
    elif options.command == "compile":
        compile_times(options.repeats)
    else:
        run(options.directory, [int(t) for t in options.threads.split(",")], options.prompt, options.count, options.repeats, options.max_memory)


if __name__ == "__main__":
    main()
