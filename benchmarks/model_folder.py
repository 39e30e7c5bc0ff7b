"""Takes a model path of ours (by default the quickstart's GGUF), writes the Hugging Face folder that every peer can read.

python benchmarks/model_folder.py FOLDER [--model PATH]
"""

import argparse
from pathlib import Path

from ours import make_config, open_model
from turns import MODEL

from jaxselftrain.errors import UserError
from jaxselftrain.model.export import export_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=MODEL)
    given = parser.parse_args()
    parts = open_model(make_config(model=given.model, dtype="float32", workload=(1, 2, 1, 1)), None)
    card = f"{given.model}, written out in float32 for benchmarks.\n"
    settings = parts.weights.config, parts.weights.generation
    try:
        export_folder(parts.params(), *settings, parts.tokenizer, given.folder, dtype="float32", card=card)
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
