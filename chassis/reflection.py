"""Server reflection over protoc's own descriptors: with the comments of the contract, and every name in it.

grpc's own servicer serves the descriptors of the generated code, which lack comments, and cannot find a method by its name.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import duration_pb2, json_format
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2 as wire

V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
V1 = "grpc.reflection.v1.ServerReflection"


class Reflection:
    """Answers requests of clients such as grpcurl for a server's services and their types."""

    def __init__(self, descriptors: bytes, services: Sequence[str]) -> None:
        """`descriptors` is a serialised FileDescriptorSet with its imports; `services` are the services to list."""
        self._services = sorted((*services, V1ALPHA, V1))
        self._files: dict[str, FileDescriptorProto] = {}
        self._file_of: dict[str, str] = {}
        for file in (*FileDescriptorSet.FromString(descriptors).file, *_of_every_server()):
            self._files[file.name] = file
            self._file_of.update(dict.fromkeys(_symbols(file), file.name))

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service under both of its names: v1 equals v1alpha on the wire."""
        method: Any = grpc.stream_stream_rpc_method_handler(
            self.answers, wire.ServerReflectionRequest.FromString, wire.ServerReflectionResponse.SerializeToString
        )
        for name in (V1, V1ALPHA):
            server.add_registered_method_handlers(name, {"ServerReflectionInfo": method})

    async def answers(
        self, requests: AsyncIterator[wire.ServerReflectionRequest], _: Any
    ) -> AsyncIterator[wire.ServerReflectionResponse]:
        """Answer each request of a stream."""
        async for request in requests:
            response = self._answer(request)
            response.valid_host = request.host
            response.original_request.CopyFrom(request)
            yield response

    def _answer(self, request: wire.ServerReflectionRequest) -> wire.ServerReflectionResponse:
        match request.WhichOneof("message_request"):
            case "file_by_filename":
                return self._file(request.file_by_filename)
            case "file_containing_symbol":
                return self._file(self._file_of.get(request.file_containing_symbol, ""))
            case "list_services":
                services = [wire.ServiceResponse(name=name) for name in self._services]
                return wire.ServerReflectionResponse(list_services_response=wire.ListServiceResponse(service=services))
            case "file_containing_extension" | "all_extension_numbers_of_type":
                return _error(grpc.StatusCode.NOT_FOUND, "no message here has extensions")
        return _error(grpc.StatusCode.INVALID_ARGUMENT, "the request asks for nothing that is known")

    def _file(self, name: str) -> wire.ServerReflectionResponse:
        """A file and all its imports, each once, the file itself first."""
        if name not in self._files:
            return _error(grpc.StatusCode.NOT_FOUND, "there is no such file or name here")
        names = [name]
        for each in names:  # the list grows during the iteration
            names.extend(imported for imported in self._files[each].dependency if imported not in names)
        files = [self._files[each].SerializeToString() for each in names]
        return wire.ServerReflectionResponse(
            file_descriptor_response=wire.FileDescriptorResponse(file_descriptor_proto=files)
        )


def _error(code: grpc.StatusCode, text: str) -> wire.ServerReflectionResponse:
    number: tuple[int, str] = code.value
    return wire.ServerReflectionResponse(error_response=wire.ErrorResponse(error_code=number[0], error_message=text))


def _of_every_server() -> Iterator[FileDescriptorProto]:
    """The files of health, of the error details and of reflection; reflection's later version differs by its name only."""
    for module in (health_pb2, error_details_pb2, duration_pb2):
        yield FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    alpha = FileDescriptorProto.FromString(wire.DESCRIPTOR.serialized_pb)
    yield alpha
    later = FileDescriptorProto()
    json_format.Parse(json_format.MessageToJson(alpha).replace("v1alpha", "v1"), later)
    yield later


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Every full name that a file defines."""
    for service in file.service:
        yield f"{file.package}.{service.name}"
        for method in service.method:
            yield f"{file.package}.{service.name}.{method.name}"
    yield from _symbols_of(file.package, file.message_type, file.enum_type)


def _symbols_of(scope: str, messages: Iterable[DescriptorProto], enums: Iterable[EnumDescriptorProto]) -> Iterator[str]:
    for message in messages:
        name = f"{scope}.{message.name}"
        yield name
        yield from (f"{name}.{field.name}" for field in message.field)
        yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
        yield from _symbols_of(name, message.nested_type, message.enum_type)
    for enum in enums:
        yield f"{scope}.{enum.name}"
        for value in enum.value:
            yield f"{scope}.{value.name}"  # by protobuf's rule, a value is a sibling of its enum;
            yield f"{scope}.{enum.name}.{value.name}"  # grpcurl asks for it as a member of its enum, too
