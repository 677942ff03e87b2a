"""What is left out of an engine's imports, in a process of its own: torch is imported once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serve_apps import lean

SCRIPT = """
import sys
import torch
from serve_apps.lean import without_compiler

with without_compiler():
    from torch._dynamo.symbolic_convert import InliningInstructionTranslator
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Pass(CustomGraphPass):
        pass

    @torch.compile(dynamic=True, backend="inductor")
    def double(x):
        return 2 * x

    @torch.compiler.disable
    def triple(x):
        return 3 * x

assert (double(2), triple(2)) == (4, 6)
assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))]

from torch._dynamo.symbolic_convert import InliningInstructionTranslator as real
assert real is not InliningInstructionTranslator

seen = []
def backend(graph, inputs):
    seen.append(graph)
    return graph.forward

assert torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2)).sum() == 4
assert len(seen) == 1
with without_compiler():
    import torch._dynamo
    assert torch._dynamo.symbolic_convert.InliningInstructionTranslator is real
"""


def test_the_compiler_is_away_while_importing_and_there_for_whoever_wants_it_later() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_what_cannot_be_read_ahead_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    lean.prefetch(tmp_path)
