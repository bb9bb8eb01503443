"""Every shape annotation of the three packages is checked while tests run."""

from jaxtyping import install_import_hook

install_import_hook(["sae_bench", "architectures", "ablations"], "tests.checked.checked")
