"""What loading a model in 4 bits takes beside the model: about a layer, for tensors are streamed.

    python benchmarks/streamed_load.py

Writes a random model in bfloat16, shard by shard, loads it in a fresh process for each way of
loading, and deletes it. Memory is RssAnon of /proc/PID/status, read by another process every few
milliseconds: what the process has of its own, with what its allocator keeps for the next tensor.
Pages of the files that are mapped for reading are not in it; the system takes those back as it
likes. There is such a count on Linux only.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tokenizers import Tokenizer, models

from minipeft import GPT, GPTConfig, quantize_model
from minipeft.figures import new_figure, save_figure
from minipeft.files import CHECKOUT, read_json, save_tensors, write_json
from minipeft.lab import bench_nf4
from minipeft.llm import hf_config, load
from minipeft.measure import weight_bytes

OUT = CHECKOUT / "benchmarks" / "results" / "streamed_load"
# 494 million parameters, in the shapes of the smallest Qwen2
SIZES = dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_attention_heads=14,
             num_key_value_heads=2, max_position_embeddings=32768, rope_theta=1e6,
             tie_word_embeddings=True, biases=("q_proj", "k_proj", "v_proj"))
WAYS = {"streamed": "each tensor read and quantized, one after the other",
        "whole": "all in bfloat16, then quantized layer by layer"}
PAUSE = 0.003                   # seconds between two looks at the memory
MOST_SAMPLES = 400              # of a way, in the file


def write_model(folder: Path, layers: int) -> GPTConfig:
    """Random weights, a file for each layer and one for the rest."""
    torch.manual_seed(0)
    config = GPTConfig(num_hidden_layers=layers, **SIZES)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in GPT(config).state_dict().items()
                  if name != "lm_head.weight"}
    weight_map = {}
    for layer in [*range(layers), None]:
        names = [name for name in shapes if (f"layers.{layer}." in name if layer is not None
                                             else ".layers." not in name)]
        number = layers + 1 if layer is None else layer + 1
        file = f"model-{number:05}-of-{layers + 1:05}.safetensors"
        tensors = {name: (0.02 * torch.randn(shapes[name])).bfloat16() for name in names}
        save_tensors(folder / file, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    write_json(folder / "config.json", hf_config.entries_of(config))
    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(folder / "tokenizer.json"))
    return config


def load_as(way: str, folder: Path) -> None:
    """In a process of its own: loads at the first line of its input, stays until the second."""
    quantize_model(torch.nn.Sequential(torch.nn.Linear(64, 64)))       # compiled beforehand
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    model, _ = load(folder, torch.bfloat16, four_bit=way == "streamed")
    if way == "whole":
        quantize_model(model)
    seconds = time.perf_counter() - start
    write_json(folder / f"{way}.done", {"seconds": seconds, "model_bytes": weight_bytes(model)})
    sys.stdin.readline()


def own_memory(pid: int) -> int:
    """Bytes of RssAnon; OSError where the system does not count them."""
    path = Path(f"/proc/{pid}/status")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    raise OSError("memory is read as RssAnon from /proc/PID/status, which Linux has; this system "
                  "does not, so nothing is measured")


def measure(way: str, folder: Path) -> dict:
    """Memory above what the process had before, while it loads, in bytes."""
    command, done = [sys.executable, __file__, "--load", way, str(folder)], folder / f"{way}.done"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        process.stdout.readline()
        before, samples = own_memory(process.pid), []
        process.stdin.write("\n")
        process.stdin.flush()
        start = time.perf_counter()
        while not done.exists():
            if process.poll() is not None:
                raise OSError(f"the process that loads ended with status {process.returncode}")
            samples.append([time.perf_counter() - start, own_memory(process.pid) - before])
            time.sleep(PAUSE)
        after = own_memory(process.pid) - before
        process.communicate("\n")
    every = -(-len(samples) // MOST_SAMPLES)
    thinned = [max(samples[i:i + every], key=lambda sample: sample[1])
               for i in range(0, len(samples), every)]
    return {**read_json(done), "peak_bytes": max(size for _, size in samples),
            "after_bytes": after, "samples": [[round(t, 3), size] for t, size in thinned]}


def layer_bytes(config: GPTConfig) -> int:
    """One decoder layer in bfloat16."""
    with torch.device("meta"):
        return 2 * sum(p.numel() for p in GPT(config).model.layers[0].parameters())


def picture(found: dict) -> Figure:
    """Memory over time of both ways, and what the model and one layer take."""
    figure, (axes,) = new_figure()
    for (way, colour, line) in (("whole", "#c8553d", "--"), ("streamed", "#1f6f8b", "-")):
        times, sizes = zip(*found["ways"][way]["samples"])
        axes.plot(times, [size / 1e6 for size in sizes], line, color=colour, label=WAYS[way])
    model, layer = found["ways"]["streamed"]["model_bytes"], found["layer_bytes"]
    axes.axhline(model / 1e6, color="0.3", linewidth=0.8)
    axes.axhline((model + layer) / 1e6, color="0.3", linewidth=0.8, linestyle=":",
                 label="the model in 4 bits, and one layer in bfloat16 more")
    axes.set(xlabel="seconds", ylabel="memory of the process above its start, MB", ylim=0)
    figure.legend(loc="outside upper center")
    return figure


def run(layers: int, out: Path) -> dict:
    own_memory(os.getpid())
    with tempfile.TemporaryDirectory() as name:
        config = write_model(Path(name), layers)
        with torch.device("meta"):
            n = sum(p.numel() for p in GPT(config).parameters())
        found = {"machine": bench_nf4.machine("cpu"), "parameters": n,
                 "file_bytes": sum(p.stat().st_size for p in Path(name).glob("*.safetensors")),
                 "layer_bytes": layer_bytes(config),
                 "ways": {way: measure(way, Path(name)) for way in WAYS}}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "streamed_load.json", found)
    save_figure(lambda: picture(found), out / "streamed_load.png")
    return found


def table(found: dict) -> str:
    layer = found["layer_bytes"]
    lines = [f"{found['parameters']:,} parameters, {found['file_bytes'] / 1e6:,.0f} MB of files; "
             f"a layer in bfloat16: {layer / 1e6:.1f} MB"]
    for way, row in found["ways"].items():
        above = row["peak_bytes"] - row["model_bytes"]
        lines.append(f"{way:<9} model {row['model_bytes'] / 1e6:7.1f} MB, peak "
                     f"{row['peak_bytes'] / 1e6:7.1f} MB, {above / 1e6:7.1f} MB above it "
                     f"({above / layer:.2f} layers), {row['seconds']:.1f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24, help="each of 14.9 million parameters")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--load", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.load:
        load_as(arguments.load[0], Path(arguments.load[1]))
    else:
        print(table(run(arguments.layers, arguments.out)))
