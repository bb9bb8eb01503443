"""Wrong command lines, and the words that refuse each."""

from pathlib import Path

from tests.wrong.desk import RUN, SITE, kept

CACHE = "cache --model model --text text.jsonl --context 24 --device cpu"
NOISE = "noise jump --cache KEPT --out new --device cpu --batch-size 8 --memory 2"
EVALUATE = "evaluate relu --cache KEPT --device cpu --lm-tokens 0"
COMMANDS: list[tuple[str, str]] = [
    ("unknown ablation 'no-such'", "run no-such"),
    ("unknown ablation 'text.jsonl'", "run text.jsonl"),
    ("d_sae must be a positive integer, got -3", f"{RUN} --d-sae -3"),
    ("invalid int value: '1e5'", f"{RUN} --tokens 1e5"),
    ("must not be negative, got -60.0", f"{RUN} --checkpoint-minutes -1"),
    ("must not be negative, got nan", f"{RUN} --checkpoint-minutes nan"),
    ("invalid float value: 'ten'", f"{RUN} --checkpoint-minutes ten"),
    ("exists and is not a run folder", f"{RUN} --out folder"),
    ("exists and is not a run folder", f"{RUN} --out KEPT"),
    ("exists and is not a run folder", f"{RUN} --out EMPTY"),
    ("of another version", f"{RUN} --out version"),
    ("damaged (not as it was written)", f"{RUN} --out wrong-types"),
    ("nowhere: no such file or folder", f"{RUN} --released nowhere"),
    ("no SAE in a known format", f"{RUN} --released folder"),
    ("(relu) and 'released' (relu) are one SAE", f"{RUN} --released relu relu"),
    ("nowhere.py: no such file", f"{RUN} --import nowhere.py"),
    ("No module named 'no_such'", f"{RUN} --import no_such"),
    ("unrecognized arguments: --set lr=3", f"{RUN} --set lr=3"),
    ("model folder 'folder' has no config.json", f"{RUN} --model folder"),
    ("text: '' is no file or folder", f"{RUN} --text EMPTY"),
    ("nowhere: no such file or folder", f"{RUN} --dry-run --released nowhere"),
    ("the width of activations must be positive, got 0", f"{RUN} --cost 0"),
    ("unknown site ''", f"{CACHE} --site EMPTY"),
    ("dtype 'int8' is unknown", f"{CACHE} --dtype int8"),
    ("invalid int value: 'x'", f"{CACHE} --tokens x"),
    ("GB are free on that disk", f"{CACHE} --site {SITE} --tokens 1000000000000000000"),
    ("is neither a folder nor a .gguf file", "cache --model text.jsonl --text text.jsonl"),
    ("nowhere: holds no run", "status nowhere"),
    ("text.jsonl: holds no run", "status text.jsonl"),
    ("of another version", "status version"),
    ("damaged (not as it was written)", "status wrong-types"),
    ("are required: run", "status"),
    ("unknown ablation 'no-such'", "figures no-such"),
    ("no tables of a finished run", "figures --folder text.jsonl"),
    ("no column 'arm'", "figures --folder no-columns"),
    ("no tables of a finished run", "figures letters.py --folder folder"),
    ("no tables of a finished run", "publish letters.py --folder folder"),
    ("no trainable thresholds", NOISE.replace("jump", "relu")),
    ("no activation cache here", NOISE.replace("KEPT", "folder")),
    ("text.jsonl: cannot be written", f"{NOISE} --out text.jsonl"),
    ("batch_size must be positive", f"{NOISE} --batch-size -3"),
    ("bandwidth must be positive, got nan", f"{NOISE} --bandwidth nan"),
    ("steps must be at least 1", f"{NOISE} --memory 0"),
    ("block even and positive", f"{NOISE} --block 3"),
    ("must not be negative", f"{NOISE} --seed -1"),
    ("invalid choice: 'onnx'", "convert relu new --to onnx"),
    ("exists already", "convert relu jump --to saelens"),
    ("cannot be written (Not a directory)", "convert relu text.jsonl/x --to saelens"),
    ("a name in .npz means a file", "convert relu new.npz --to saelens"),
    ("has no equal JumpReLU SAE", "convert topk new --to saelens --as gated"),
    ("no SAE in a known format", "convert KEPT new --to saelens"),
    ("an arm of a run; its SAE is", "convert ARM new --to saelens"),
    ("no activation cache here", EVALUATE.replace("KEPT", "text.jsonl")),
    ("narrow: reads activations of width 8", EVALUATE.replace("relu", "narrow")),
    ("must end in .csv or .parquet", f"{EVALUATE} --out table.txt"),
    ("text.jsonl: cannot be written", f"{EVALUATE} --out text.jsonl/t.csv"),
    ("exists already", f"{EVALUATE} --out folder"),
    ("lm_tokens must not be negative", f"{EVALUATE} --lm-tokens -1"),
    ("is one side of a cache", EVALUATE.replace("KEPT", "KEPT/train")),
    ("nowhere: no such file or folder", "upload nowhere a/b"),
    ("'ab' is no repository's name", "upload relu ab"),
    ("is no folder's name", "upload relu a/b --path ../x"),
    ("no SAE in a known format", "upload folder a/b"),
    ("give module:Name", "check nowhere"),
    ("there is no 'Nope' in it", "check architectures:Nope"),
    ("nothing that can be checked", "check torch:nn"),
    ("unrecognized arguments: extra", "list extra"),
    ("invalid choice: 'dance'", "dance"),
]


def arguments(line: str) -> list[str]:
    places = {"KEPT": str(kept()), "ARM": str(next(Path("done/arms").iterdir())), "EMPTY": ""}
    found = []
    for word in line.split():
        for name, place in places.items():
            word = word.replace(name, place)
        found.append(word)
    return found
