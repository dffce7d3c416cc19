"""The messages of the protocol, as `proto/umbel/v1alpha/umbel.proto` defines them.

The classes are made from the compiled schema beside this file, so that no generated code has to fit the installed
release of protobuf. `messages.pyi` has their types; `make proto` writes both anew.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import enum_type_wrapper

_PACKAGE = "umbel.v1alpha"


def _classes() -> dict[str, Any]:
    schema = descriptor_pb2.FileDescriptorSet()
    schema.ParseFromString(files(__package__).joinpath("umbel.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in schema.file:
        pool.Add(file)  # type: ignore[no-untyped-call]
    found: dict[str, Any] = {}
    (file,) = schema.file
    for kind in file.message_type:
        found[kind.name] = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{kind.name}"))
    for enum in file.enum_type:
        descriptor = pool.FindEnumTypeByName(f"{_PACKAGE}.{enum.name}")
        found[enum.name] = enum_type_wrapper.EnumTypeWrapper(descriptor)
        found.update({value.name: value.number for value in enum.value})
    return found


globals().update(_classes())
