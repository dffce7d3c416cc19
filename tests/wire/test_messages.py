"""The compiled schema is that of the .proto, and all that it names is there."""

from __future__ import annotations

import ast
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from umbel.wire import messages as m

PROTO = Path(__file__).parents[2] / "proto"
NAME = "umbel/v1alpha/umbel.proto"


def schema(data: bytes) -> descriptor_pb2.FileDescriptorProto:
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(data).file
    return file


def shipped() -> descriptor_pb2.FileDescriptorProto:
    return schema(files("umbel.wire").joinpath("umbel.binpb").read_bytes())


def test_the_compiled_schema_is_that_of_the_proto(tmp_path: Path) -> None:
    out = tmp_path / "umbel.binpb"
    assert protoc.main(["protoc", f"-I{PROTO}", f"--descriptor_set_out={out}", NAME]) == 0
    assert schema(out.read_bytes()) == shipped(), "run `make proto`"


def test_every_message_is_a_class() -> None:
    for kind in shipped().message_type:
        made = getattr(m, kind.name)
        assert made.DESCRIPTOR.full_name == f"umbel.v1alpha.{kind.name}"
        assert made.FromString(made().SerializeToString()) == made()


def test_every_enum_value_is_a_constant() -> None:
    for enum in shipped().enum_type:
        for value in enum.value:
            assert getattr(m, value.name) == value.number
            assert getattr(m, enum.name).Name(value.number) == value.name


def test_every_message_is_part_of_a_frame_or_a_payload() -> None:
    waiting = [kind.DESCRIPTOR for kind in (m.Frame, m.Arrays, m.Given, m.Update)]  # or is what a payload has
    found = {kind.name for kind in waiting}
    while waiting:
        parts = {field.message_type.name: field.message_type for field in waiting.pop().fields if field.message_type}
        waiting += [parts[name] for name in parts.keys() - found]
        found |= parts.keys()
    assert found - {"MetricsEntry"} == {kind.name for kind in shipped().message_type}


def test_the_types_name_what_is_there() -> None:
    stub = ast.parse(files("umbel.wire").joinpath("messages.pyi").read_text("utf-8"))
    classes = {node.name for node in stub.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}
    assert classes == {each.name for each in (*shipped().message_type, *shipped().enum_type)}
