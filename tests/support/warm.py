"""What every child of `killing` needs, imported once; with the digest of the code as it is when the tests begin."""

import nlrl.cli
import nlrl.engine.http
import nlrl.session  # noqa: F401
import nlrl_envs.maze  # noqa: F401
from nlrl.manifest import code_digest

code_digest("nlrl_envs.maze")
