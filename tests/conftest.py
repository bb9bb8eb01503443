"""Every shape annotation of the three packages is checked while tests run; examples of properties
have no deadline, since the first may compile loops and others wait for a busy machine."""

from hypothesis import settings
from jaxtyping import install_import_hook

import tests.checked  # noqa: F401 (the hook looks it up in the package without importing it)

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

install_import_hook(["sae_bench", "architectures", "ablations"], "tests.checked.checked")

collect_ignore = ["interop"]  # they need other libraries: `make test-interop`
