"""`minipeft merge`: a model with an adapter in its weights, or as it is, as a folder that
transformers loads."""
from pathlib import Path

from ..llm import base
from ..llm.run_files import WEIGHTS, claimed, load_base, load_trained, write_weights
from ..peft_model import PeftModel
from . import check_output

EXAMPLE = "python -m minipeft merge runs/tools --out runs/tools_merged"


def arguments(parser) -> None:
    parser.add_argument("adapter", type=Path, nargs="?", help="folder of a run or of an HF PEFT "
                        "adapter; without it, the model is written as it is, for HF PEFT to load "
                        "an adapter onto")
    parser.add_argument("--model", help=f"{base.WANTED} (default: the run's, otherwise "
                        f"{base.SMOLLM2})")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model: new or empty")


def run(args) -> None:
    check_output(args.out)
    with claimed(args.out):
        model, tokenizer = load_base(args.model, args.adapter, four_bit=True)
        if args.adapter is not None:
            model = load_trained(model, args.adapter)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        write_weights(model, args.out)
        base.write_transformers_files(model, tokenizer, args.out)
    size = (args.out / WEIGHTS).stat().st_size
    print(f"written: {args.out}, {size / 1e6:.0f} MB; "
          f'transformers.AutoModelForCausalLM.from_pretrained("{args.out}") loads it')
