"""Configs of other libraries: values of wrong types are named, for every key that is read."""

from pathlib import Path
from typing import Any

import pytest

from sae_bench.errors import InputError
from sae_bench.formats.configs import check_config, check_types, number_of_latents
from sae_bench.loading import save_sae
from tests.foreign import SAES
from tests.refusals import refused
from tests.sae_bench.formats.files import edit_json

PATH = Path("folder/weights")
INTEGER, BOOLEAN, TEXT = "expected an integer", "expected True or False", "expected text"
KEYS = [
    ("saelens", "cfg.json", "d_in", INTEGER),
    ("saelens", "cfg.json", "d_sae", INTEGER),
    ("saelens", "cfg.json", "apply_b_dec_to_input", BOOLEAN),
    ("saelens", "cfg.json", "rescale_acts_by_decoder_norm", BOOLEAN),
    ("saelens", "cfg.json", "normalize_activations", TEXT),
    ("saelens", "cfg.json", "metadata", "expected a dict"),
    ("saelens", "cfg.json", "metadata.hook_name", TEXT),
    ("saelens", "cfg.json", "metadata.model_name", TEXT),
    ("saelens", "cfg.json", "metadata.context_size", INTEGER),
    ("saelens", "cfg.json", "sae_ablations", "expected a dict"),
    ("saelens", "cfg.json", "sae_ablations.site", TEXT),
    ("dictionary-learning", "config.json", "trainer.activation_dim", INTEGER),
    ("dictionary-learning", "config.json", "trainer.dict_size", INTEGER),
    ("dictionary-learning", "config.json", "trainer.k", INTEGER),
    ("dictionary-learning", "config.json", "trainer.layer", INTEGER),
    ("dictionary-learning", "config.json", "trainer.submodule_name", TEXT),
    ("dictionary-learning", "config.json", "trainer.lm_name", TEXT),
    ("dictionary-learning", "config.json", "buffer", "expected a dict"),
    ("dictionary-learning", "config.json", "buffer.ctx_len", INTEGER),
    ("dictionary-learning", "config.json", "sae_ablations", "expected a dict"),
    ("sparsify", "cfg.json", "d_in", INTEGER),
    ("sparsify", "cfg.json", "num_latents", INTEGER),
    ("sparsify", "cfg.json", "expansion_factor", INTEGER),
    ("sparsify", "cfg.json", "k", INTEGER),
    ("sparsify", "cfg.json", "transcode", BOOLEAN),
    ("sparsify", "cfg.json", "skip_connection", BOOLEAN),
    ("sparsify", "cfg.json", "sae_ablations.context", "expected a dict"),
]
VALUES: dict[str, list[Any]] = {
    INTEGER: ["8", 8.0, True, [8], {}],
    BOOLEAN: ["False", 0, [False], 1.0],
    TEXT: [3, ["none"], {}],
    "expected a dict": ["{}", 3, [{}]],
}


@pytest.mark.parametrize(("format", "file", "key", "expected"), KEYS)
def test_values_of_wrong_types(
    format: str, file: str, key: str, expected: str, tmp_path: Path
) -> None:
    sae = SAES["BatchTopKSAE" if format == "dictionary-learning" else "TopKSAE"]
    save_sae(sae, tmp_path, format)
    *outer, last = key.split(".")

    for value in VALUES[expected]:

        def put(config: dict[str, Any], value: Any = value) -> None:
            for name in outer:
                config = config[name]
            config[last] = value

        edit_json(tmp_path / file, put)
        refused(tmp_path, f"{file}.{key}: {expected}", f"got {value!r}")


def test_nothing_is_converted() -> None:
    check_types({"a": 3, "other": "x"}, {"a": int, "b": bool}, PATH)
    with pytest.raises(InputError, match=r"^folder/weights\.a: expected an integer, got '3'$"):
        check_types({"a": "3"}, {"a": int}, PATH)


def test_sizes() -> None:
    check_config({}, {"d_in": 3}, PATH, PATH)
    check_config({"d_in": 3}, {"d_in": 3}, PATH, PATH)
    for wrong in (4, "3", None, [3]):
        with pytest.raises(InputError, match=r"^folder/weights\.d_in: says .*, but weights has 3$"):
            check_config({"d_in": wrong}, {"d_in": 3}, PATH, PATH)


def test_numbers_of_latents() -> None:
    assert number_of_latents(3, 3, "k") == 3
    for wrong in (0, 4, 1.0, True, "1", None):
        with pytest.raises(InputError, match=r"^k: expected an integer from 1 to 3, got "):
            number_of_latents(wrong, 3, "k")
