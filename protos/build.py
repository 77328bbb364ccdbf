"""Hatchling's build hook: turns the contract in protos/ into the typed Python package `charging.v1`."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def generate(root: Path, out: Path) -> None:
    """Write the stubs of every .proto under root/protos, and what reflection serves of them, to out/charging/v1.

    Raises RuntimeError with protoc's exit status when a file does not compile.
    """
    import grpc_tools
    from grpc_tools import protoc

    protos = root / "protos"
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    package = out / "charging" / "v1"
    package.mkdir(parents=True, exist_ok=True)
    for marker in (out / "charging" / "__init__.py", package / "__init__.py", out / "charging" / "py.typed"):
        marker.write_text("")
    sources = sorted(str(path.relative_to(protos)) for path in (protos / "charging" / "v1").glob("*.proto"))
    plugins = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={protos}",
            f"--proto_path={well_known}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            f"--descriptor_set_out={package / 'descriptors.binpb'}",
            "--include_imports",
            "--include_source_info",
            *sources,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


class StubsHook(BuildHookInterface[Any]):
    """Generates the stubs before every build, wheel and editable install alike."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate into the checkout, where the editable install and the wheel both find them."""
        generate(Path(self.root), Path(self.root))
