"""Plan the kernel of SmolLM2-135M, without its weights: nothing is compiled, and nothing runs.

`python examples/plan_smollm2.py` prints the groups of `decode`, in the order of a turn, and with
`--queues` the tasks of each worker. `ark-dist explain examples/plan_smollm2.py --ranks 2` says what
each of two ranks has and sends.
"""

import argparse

import ark_dist as ark
from ark_dist.models.llama import Llama
from ark_dist.models.llama_config import llama_config

parser = argparse.ArgumentParser(description="Plan the kernel of SmolLM2-135M.")
parser.add_argument("--layers", type=int, default=30)
parser.add_argument("--device", default="numpy", help="whose plans are the same on all machines")
parser.add_argument("--queues", action="store_true", help="print tasks, not groups")
options = parser.parse_args()

config = llama_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
    }
)
mesh = ark.Mesh({"tp": -1})
graph = ark.Model("smollm2")
llama = Llama(config, context=2048, mesh=mesh, graph=graph)
with ark.Executor(model=graph, mesh=mesh, device=options.device, workers=2) as exe:
    _, _, decode = str(exe.plan).partition('method "decode"')
groups, _, queues = decode.partition("  worker 0")
print(f"  worker 0{queues}" if options.queues else groups.partition("\n")[2], end="")
