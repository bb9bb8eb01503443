"""Every shape annotation of the three packages is checked while tests run."""

from jaxtyping import install_import_hook

import tests.checked  # noqa: F401 (the hook looks it up in the package without importing it)

install_import_hook(["sae_bench", "architectures", "ablations"], "tests.checked.checked")

collect_ignore = ["interop"]  # they need other libraries: `make test-interop`
